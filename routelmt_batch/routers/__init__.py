"""Every kind of router, by `router.kind`: how it is opened and how it scores. They know no budget."""

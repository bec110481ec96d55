"""Router kinds, by `router.kind`: how each is opened and scores rows. They know no budget."""

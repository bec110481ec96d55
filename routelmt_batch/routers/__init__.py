"""Router kinds, by `router.kind`: how each is opened and scores rows. They know no budget.

How to add one: docs/pages/how-it-works.md, "Add a router kind".
"""

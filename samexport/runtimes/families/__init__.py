"""What each family does around its graphs, and what is compared; reached through the family's object alone."""

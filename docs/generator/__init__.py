"""Writes the parts of the documentation that the program itself says: `inserts.fill` puts them into the pages."""

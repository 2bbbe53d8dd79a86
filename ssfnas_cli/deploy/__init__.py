"""Use of a trained network: on files, in other people's Python, and in other programs' formats. Nothing trains here."""

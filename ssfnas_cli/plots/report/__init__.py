"""The report: one page of runs. page.py makes the page of blocks (blocks.py); one file fills each of its sections."""

"""Sources of images. Each is registered in `SOURCES` by its name.

A source is a factory `(options, settings) -> Source` (see `base`) with a decorator:

    @SOURCES.register("slides", options=SlidesOptions, facts=SourceFacts(root="a folder of slides"))
    def open_slides(options, settings): ...

A third-party package declares one by an entry point in the group `ssfnas.sources`.
"""

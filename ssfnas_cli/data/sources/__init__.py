"""Where images come from: one file a source, found by its name in the registry `SOURCES`.

A source is a factory `(options, settings) -> Source` (see `base`) with a decorator:

    @SOURCES.register("slides", options=SlidesOptions, facts=SourceFacts(root="a folder of slides"))
    def open_slides(options, settings): ...

A package brings one by an entry point of the group `ssfnas.sources`.
"""

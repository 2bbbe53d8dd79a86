"""Settings as the commands load them."""

from ssfnas_cli.settings import SearchSettings, load_settings


def load(*sets, model=SearchSettings, preset=None, config=None, **flags):
    return load_settings(model, preset=preset, config=config, sets=sets, flags=flags)

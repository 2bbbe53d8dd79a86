"""Settings as the commands load them."""

from ssfnas_cli.settings import SearchSettings, load_settings, read_configs


def load(*sets, model=SearchSettings, preset=None, config=None, **flags):
    return load_settings(model, preset=preset, configs=read_configs(config and [config]), sets=sets, flags=flags)

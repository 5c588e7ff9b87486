"""What `python app.py` can be told, in a YAML file or on the command line."""

from dataclasses import dataclass

from geomae.errors import ConfigError
from geomae.training.config_file import option

__all__ = ["DemoArguments"]


@dataclass
class DemoArguments:
    """The models and the photos of a page, and where it is served."""

    model: str | None = option(None, "Folder of a model fine-tuned to coordinates.")
    pretrained: str | None = option(
        None, "Folder of a pretraining, for the tab that shows what the model sees; without it the tab says how."
    )
    photos: str | None = option(
        None,
        "Packed folder, or any other source of photos with coordinates, for a game; without it its tab says how.",
    )
    photos_split: str = option("test", "Which split of a packed folder; other sources have none.")
    server_name: str | None = option(
        None, "Address to listen on; 0.0.0.0 for other machines. By default this machine alone can see the page."
    )
    server_port: int | None = option(None, "Port to listen on; by default the first that is free from 7860.")
    share: bool = option(
        False, "Let Gradio's own server hand the page on to a public address: photos then pass through it."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.model:
            raise ConfigError("model is missing: give --model PATH, the folder of a run of run_finetune_geo.py")
        if self.server_port is not None and not 1 <= self.server_port <= 65535:
            raise ConfigError(f"server_port is {self.server_port}; a port is a number from 1 to 65535")

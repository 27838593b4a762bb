"""The verb `push-model`: the model folder as one commit on the Hub, read back afterwards."""

from __future__ import annotations

from dataset_builder.errors import InputError
from dataset_builder.publish import publish_with_card
from model_card.candidates import read_record
from model_card.card import with_repo
from model_card.config import EvaluationArguments, ModelHubArguments


def push_model(arguments: EvaluationArguments, hub: ModelHubArguments) -> str:
    """Publish the model folder in one commit, read it back, and return its URL.

    Raises:
        InputError: if there is no model with a card, or no `hub_model_id`, or if the Hub refuses it.
    """
    folder = arguments.model_dir
    read_record(folder)
    card = folder / "README.md"
    if not card.is_file():
        raise InputError(f"{folder} has no model card; run `embedsmith report` first.")
    if not hub.hub_model_id:
        raise InputError("`hub_model_id` is not given; say where to push, as in --hub_model_id name/model.")
    return publish_with_card(
        folder, hub.hub_model_id, "model", hub, with_repo, message="Add model made with embedsmith"
    )

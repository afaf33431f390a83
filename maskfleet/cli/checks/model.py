"""The check of the model: whether a worker here could load it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from maskfleet.cli.checks.answers import ANSWER_S
from maskfleet.cli.checks.finding import Finding, State, size
from maskfleet.cli.checks.read_settings import Settings
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.settings import WorkerSettings

_USE = (
    "Set MASKFLEET_MODEL to a hub id such as facebook/sam-vit-base, or to a folder with config.json, "
    "preprocessor_config.json and model.safetensors."
)


def check_model(settings: Settings, load_model: bool) -> Iterator[Finding]:
    if importlib.util.find_spec("transformers") is None:
        yield Finding("model", State.SKIPPED, "The extra `worker` is not installed here.")
        return
    from maskfleet.worker.node.memory import weights_bytes

    ref, revision = settings.worker.model, settings.worker.model_revision
    folder = Path(ref).expanduser()
    if ref.startswith(("/", ".", "~")) and not folder.is_dir():
        yield Finding("model", State.FAILED, f"There is no folder {ref}.", _USE)
        return
    weights = weights_bytes(ref, revision)
    if folder.is_dir():
        missing = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
        if missing or not weights:
            what = ", ".join([*missing, *([] if weights else ["weights in safetensors"])])
            yield Finding("model", State.FAILED, f"The folder {ref} lacks {what}.", _USE)
            return
    elif not weights:
        yield _hub_model(ref, revision)
        if not load_model:
            return
    if not load_model:
        yield Finding(
            "model", State.OK, f"{ref} is on this machine, {size(weights)} of weights; --load-model tries it."
        )
        return
    yield _loaded_model(settings.worker)


def _hub_model(ref: str, revision: str) -> Finding:
    """Return whether a worker could download a model that is not here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    mend = "Download it where the hub is reached, and mount that as HF_HOME or name its folder in MASKFLEET_MODEL."
    try:
        HfApi().model_info(ref, revision=revision or None, timeout=ANSWER_S)
    except HFValidationError:
        return Finding("model", State.FAILED, f"{ref} is neither a hub id nor a folder.", "Correct MASKFLEET_MODEL.")
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        detail = f"{ref} is not on this machine, and the hub answers {status} for it."
        return Finding("model", State.FAILED, detail, f"Check the name and HF_TOKEN. {mend}")
    except Exception as error:  # noqa: BLE001  of several libraries: no network, a proxy, HF_HUB_OFFLINE
        detail = f"{ref} is not on this machine, and the hub is not reached ({type(error).__name__})."
        return Finding("model", State.FAILED, detail, mend)
    return Finding("model", State.WARNING, f"{ref} is not on this machine; a worker downloads it as it starts.", mend)


def _loaded_model(settings: WorkerSettings) -> Finding:
    from maskfleet.worker.golden import ModelTest, read_golden
    from maskfleet.worker.sam.model import load_model

    started = time.monotonic()
    try:
        golden = read_golden(settings.model, settings.golden_file)
        model = load_model(
            settings.model, settings.device, settings.precision, revision=settings.model_revision or None
        )
        ModelTest(model, golden)()
    except JobError as error:
        mend = "Download the checkpoint again; if it stays so, this machine's device computes wrongly."
        return Finding(
            "model", State.FAILED, str(error), mend if error.code == "model_wrong" else "See docs/models.md."
        )
    took = f"in {time.monotonic() - started:.1f} s on {settings.device}"
    if golden is None:
        return Finding("model", State.OK, f"{settings.model} loads and makes masks, {took}; it has no golden masks.")
    return Finding("model", State.OK, f"{settings.model} finds its golden masks, {took}.")

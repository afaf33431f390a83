"""The command line.  A subcommand's module is imported only when called, so ``submit`` never waits for torch."""

from __future__ import annotations

import importlib
from typing import cast

import click
from click.shell_completion import CompletionItem

from maskfleet.cli.extras import naming_extras

#: Each subcommand: where its click command is, and its line in the list of commands.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("maskfleet.cli.up:up_command", "Run the whole service on this machine."),
    "demo": ("maskfleet.cli.demo:demo_command", "Run one job of each mode through a local stack."),
    "segment": ("maskfleet.cli.segment:segment_command", "Segment photos in this process, without a server."),
    "submit": ("maskfleet.cli.jobs:submit_command", "Send a job to a server."),
    "batch": ("maskfleet.cli.batch:batch_command", "Segment many photos through a server, into a folder."),
    "raster": ("maskfleet.cli.raster:raster_command", "Segment a raster larger than a job, in tiles, onto the map."),
    "upload": ("maskfleet.cli.images:upload_command", "Upload photos, for jobs to name."),
    "embed": ("maskfleet.cli.images:embed_command", "Encode a photo in advance, so that clicks on it are fast."),
    "jobs": ("maskfleet.cli.listing:jobs_command", "List your jobs."),
    "status": ("maskfleet.cli.jobs:status_command", "Show a job."),
    "wait": ("maskfleet.cli.jobs:wait_command", "Wait until a job has ended."),
    "cancel": ("maskfleet.cli.jobs:cancel_command", "Cancel a job."),
    "retry": ("maskfleet.cli.jobs:retry_command", "Queue a failed job again."),
    "delete": ("maskfleet.cli.jobs:delete_command", "Delete an ended job and its results."),
    "fetch": ("maskfleet.cli.jobs:fetch_command", "Download a job's result."),
    "export": ("maskfleet.cli.exports:export_command", "Write a job's masks in further formats, without a GPU."),
    "refilter": ("maskfleet.cli.refilter:refilter_command", "Filter a job's candidates again, without a GPU."),
    "overlay": ("maskfleet.cli.pictures:overlay_command", "Show a job's picture in the terminal."),
    "open": ("maskfleet.cli.pictures:open_command", "Open the server's page, or a job on it."),
    "models": ("maskfleet.cli.listing:models_command", "List the server's models."),
    "batches": ("maskfleet.cli.batches:batches_command", "Segment all images under an S3 prefix; show or cancel that."),
    "deliveries": ("maskfleet.cli.deliveries:deliveries_command", "Show a job's webhooks and every delivery attempt."),
    "redeliver": ("maskfleet.cli.deliveries:redeliver_command", "Send webhooks again."),
    "webhook": ("maskfleet.cli.webhooks:webhook_command", "Receive webhooks here, send a test one, show the secret."),
    "plan": ("maskfleet.cli.plan:plan_command", "Say how many workers it takes until all jobs are done."),
    "top": ("maskfleet.cli.top:top_command", "Show the fleet as it works."),
    "doctor": ("maskfleet.cli.doctor:doctor_command", "Check what the service needs, and say how to mend it."),
    "ledger": ("maskfleet.cli.ledger:ledger_command", "Upgrade the data in Redis to this version."),
    "keys": ("maskfleet.cli.keys:keys_command", "Create, list and revoke API keys."),
    "token": ("maskfleet.cli.tokens:token_command", "Make a short-lived token for a web page."),
    "completion": ("maskfleet.cli.completion:completion_command", "Have your shell complete commands and files."),
    "api": ("maskfleet.cli.programs:api_command", "Run the API."),
    "worker": ("maskfleet.cli.programs:worker_command", "Run a worker on each of this machine's devices."),
    "sweep": ("maskfleet.cli.programs:sweep_command", "Remove results that no longer belong to a job."),
    "courier": ("maskfleet.cli.programs:courier_command", "Run the courier: webhooks, leases and deadlines."),
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        ctx.invoked_subcommand = cmd_name  # click says so, too, but after the import
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click would look among the commands that were added to the group; here none is.
        if args[0] in COMMANDS or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from maskfleet.cli.terminal import did_you_mean

        raise click.UsageError(f"No such command {args[0]!r}. {did_you_mean(args[0], COMMANDS)}".rstrip(), ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click would import every command for its line of help.
        found = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return found if found or not incomplete.startswith("-") else super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        with naming_extras(ctx):
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maskfleet", prog_name="maskfleet")
def main() -> None:
    """Images in, masks out: Segment Anything as a durable job service."""

"""`jobrunner attach`: be there until a monitor job's end."""

import click

from jobrunner.cli.options import JOB_ID, complete_ids, json_option


@click.command()
@click.argument("job_id", metavar="ID", type=JOB_ID, shell_complete=complete_ids)
@json_option
def attach(job_id: int, *, as_json: bool) -> int:
    """Take over a monitor job that nobody watches, or follow one that somebody does, to its end.

    The work is never started a second time. Exits as the job ended.
    """
    from jobrunner import registry
    from jobrunner.cli.foreground import watch_to_the_end
    from jobrunner.cli.live import Live
    from jobrunner.cli.output import log_as_words

    log_as_words()
    with Live(as_json=as_json, is_new=False) as live:
        executor = registry.load_executor_class("LocalExecutor")(on_started=live.started)
        return watch_to_the_end(lambda: executor.attach(job_id), live)

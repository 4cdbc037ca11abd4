"""The command line: flags only. The work is in train.py, evaluate.py and report.py.

    python -m experiments.train    --config=configs/x.py:trades --workdir=runs/x [--config.defense.eps=0.0157]
    python -m experiments.evaluate --config=configs/x.py:trades --workdir=runs/x
    python -m experiments.report   --workdir=runs/x --workdir=runs/y --out=report.html
"""
import sys
from collections.abc import Callable
from logging import WARNING, getLogger

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import runtime
from medrobust_jax.parallel import hosts

FLAGS = flags.FLAGS
# What a user can mend: shown as one line. Anything else is a bug and shows its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError)


def define_run_flags() -> None:
    """The flags of programs that compute: a config, a workdir, where data are, and processes."""
    config_flags.DEFINE_config_file('config', None, 'The run, e.g. configs/retinamnist.py:trades.')
    flags.DEFINE_string('workdir', None, "The run's folder.")
    flags.DEFINE_string('data_dir', None, 'Where data sets are looked for; default: MEDROBUST_DATA.')
    flags.DEFINE_string('cache_dir', None, 'Where compiled programs are kept; empty: nowhere.')
    flags.DEFINE_string('coordinator_address', None, 'host:port of process 0, for several processes.')
    flags.DEFINE_integer('num_processes', None, 'How many processes.')
    flags.DEFINE_integer('process_id', None, "This process's number.")
    flags.DEFINE_bool('multihost', False, 'Ask the environment for these three: TPU pods, Slurm.')
    flags.mark_flags_as_required(['config', 'workdir'])
    define_debug_flag()


def define_debug_flag() -> None:
    """`--debug` shows the traceback of errors that are otherwise one line."""
    flags.DEFINE_bool('debug', False, 'Show the traceback of every error.')


def launch(run: Callable[[ConfigDict, str], object], *, device_per_core: bool = False) -> None:
    """Parses the flags, prepares JAX (see `runtime.start`) and calls `run(config, workdir)`."""
    define_run_flags()

    def work() -> None:
        logging.set_verbosity(logging.INFO)
        hosts.initialize(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id,
                         automatic=FLAGS.multihost)
        runtime.start(FLAGS.cache_dir, device_per_core=device_per_core and FLAGS.num_processes is None)
        run(FLAGS.config, FLAGS.workdir)

    def main(argv: list[str]) -> None:
        _no_arguments(argv)
        guarded(work)

    app.run(main, flags_parser=parse_flags)


def launch_on_files(work: Callable[[], object]) -> None:
    """Parses the flags of a program that reads what others wrote, without a config, and calls `work()`."""
    define_debug_flag()

    def main(argv: list[str]) -> None:
        del argv
        getLogger('jax').setLevel(WARNING)  # it lists the accelerators that are absent
        guarded(work)

    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line and opens the config; a mistake in either is one line and status 2."""
    try:
        rest = FLAGS(argv)
        if 'config' in FLAGS:
            getattr(FLAGS.config, 'seed', None)  # ml_collections reports a missing file only when asked
        return rest
    except Exception as error:  # a config file is a program, and may raise anything
        if '--debug' in argv:
            raise
        sys.exit(_fail(_flag_message(error)))


def _flag_message(error: BaseException) -> str:
    """What is wrong with the command line, without the tracebacks that ml_collections puts into its messages."""
    cause = error
    while cause.args and isinstance(cause.args[0], BaseException):
        cause = cause.args[0]
    if isinstance(cause, KeyError):
        return 'unknown config field ' + '; '.join(cause.args[0].splitlines()).replace('Did', 'did')
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if 'Traceback' in str(error) else ' '.join(line.strip() for line in lines)


def _fail(message: object) -> int:
    """Shows an error that a user can mend; returns the status to leave with."""
    print(f'Error: {message}\n(--debug shows where.)', file=sys.stderr)
    return 2


def guarded(work: Callable[[], object]) -> None:
    """Shows errors that a user can mend as one line, and leaves with status 2; Ctrl-C with 130."""
    try:
        work()
    except KeyboardInterrupt as error:
        print(f'\n{str(error) or "Interrupted: run the same command again."}', file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if FLAGS.debug:
            raise
        sys.exit(_fail(error))


def _no_arguments(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments {argv[1:]}: flags begin with --')

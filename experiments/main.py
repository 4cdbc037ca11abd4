"""The command line: flags only. The work is in train.py, evaluate.py and report.py.

    python -m experiments.train    --config=configs/x.py:trades --workdir=runs/x [--config.defense.eps=0.0157]
    python -m experiments.evaluate --config=configs/x.py:trades --workdir=runs/x
    python -m experiments.report   --workdir=runs/x --workdir=runs/y --out=report.html
"""
import sys
from collections.abc import Callable

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
    flags.DEFINE_integer('num_processes', None, 'How many processes; TPU pods find out by themselves.')
    flags.DEFINE_integer('process_id', None, "This process's number.")
    flags.mark_flags_as_required(['config', 'workdir'])
    define_debug_flag()


def define_debug_flag() -> None:
    """`--debug` shows the traceback of errors that are otherwise one line."""
    flags.DEFINE_bool('debug', False, 'Show the traceback of every error.')


def launch(run: Callable[[ConfigDict, str], object]) -> None:
    """Parses the flags, prepares JAX and calls `run(config, workdir)`."""
    define_run_flags()

    def main(argv: list[str]) -> None:
        _no_arguments(argv)
        logging.set_verbosity(logging.INFO)
        if FLAGS.num_processes or FLAGS.coordinator_address:
            hosts.initialize(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
        runtime.start(FLAGS.cache_dir)
        guarded(lambda: run(FLAGS.config, FLAGS.workdir))

    app.run(main)


def guarded(work: Callable[[], object]) -> None:
    """Shows errors that a user can mend as one line, and leaves with status 2; Ctrl-C with 130."""
    try:
        work()
    except KeyboardInterrupt as error:
        print(f'\n{error or "Interrupted."}', file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if FLAGS.debug:
            raise
        print(f'Error: {error}\n(--debug shows where.)', file=sys.stderr)
        sys.exit(2)


def _no_arguments(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments {argv[1:]}: flags begin with --')

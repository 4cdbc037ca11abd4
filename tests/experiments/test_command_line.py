"""The programs as a user starts them: what can be mended is one line and status 2, and nothing is lost."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from ml_collections import config_flags

import experiments
from experiments import main
from experiments.evaluate import evaluate
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.train.checkpoint import load_for_evaluation

ROOT = Path(experiments.__file__).parents[1]
CONFIG = f'--config={Path(__file__).with_name("tiny_config.py")}'
ENDLESS = ('--config.train.epochs=1000000', '--config.train.checkpoint_every_epochs=1000')


def start(program, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != 'MEDROBUST_DATA'}
    return subprocess.Popen([sys.executable, '-m', f'experiments.{program}', *arguments], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def outcome(program, *arguments):
    process = start(program, *arguments)
    _, error = process.communicate(timeout=300)
    return process.returncode, error


def refusal(program, *arguments):
    """The one line with which a program refuses; whatever else it prints, no traceback."""
    status, text = outcome(program, *arguments)
    assert status == 2, text
    assert 'Traceback' not in text
    assert text.rstrip().endswith('(--debug shows where.)')
    return text[text.index('Error: '):]


def wait_for(process, condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, 'nothing happened'
        time.sleep(.02)


opens_config = pytest.mark.filterwarnings('ignore:the load_module')  # how ml_collections opens config files


@pytest.fixture
def parse(monkeypatch, capsys):
    """`parse(*arguments)` -> what the parser of flags prints when it gives up with status 2."""
    def run(*arguments):
        argv, own = ['train', *arguments], flags.FlagValues()
        config_flags.DEFINE_config_file('config', None, 'The run.', flag_values=own, sys_argv=argv)
        flags.DEFINE_bool('debug', False, 'Tracebacks.', flag_values=own)
        monkeypatch.setattr(main, 'FLAGS', own)
        with pytest.raises(SystemExit) as left:
            main.parse_flags(argv)
        assert left.value.code == 2
        return capsys.readouterr().err.removesuffix('\n(--debug shows where.)\n')
    return run


@opens_config
@pytest.mark.parametrize(('argument', 'message'), [
    ('--config.trian.epochs=3', """unknown config field 'trian'; did you mean "train" instead of "trian"?"""),
    ('--config.train.epocs=3', """unknown config field 'epocs'; did you mean "epochs" instead of "epocs"?"""),
    ('--config.train.epochs=many', "flag --config.train.epochs=many: could not convert string to float: 'many'"),
    ('--confg=x', "Unknown command line flag 'confg'. Did you mean: config ?"),
])
def test_mistakes_on_the_command_line_are_one_line(parse, argument, message):
    assert parse(CONFIG, argument) == f'Error: {message}'


@opens_config
def test_mistakes_in_naming_the_config_are_one_line(parse):
    text = parse(f'--config={ROOT}/configs/pneumoniamnist.py:pgdat')
    assert text.startswith("Error: ValueError: unknown defense 'pgdat' after the colon of --config; known:")
    text = parse('--config=configs/nothere.py')
    assert text.endswith("No such file or directory: 'configs/nothere.py'")
    assert '\n' not in text


@pytest.mark.parametrize(('error', 'status', 'shown'), [
    (ValueError('eps = -1'), 2, 'Error: eps = -1\n(--debug shows where.)\n'),
    (OSError(28, 'No space left on device', 'x.npz'), 2,
     "Error: [Errno 28] No space left on device: 'x.npz'\n(--debug shows where.)\n"),
    (KeyboardInterrupt('Stopped after step 3.'), 130, '\nStopped after step 3.\n'),
    (KeyboardInterrupt(), 130, '\nInterrupted: run the same command again.\n'),
])
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, status, shown):
    def work():
        raise error

    monkeypatch.setattr(main, 'FLAGS', SimpleNamespace(debug=False))
    with pytest.raises(SystemExit) as left:
        main.guarded(work)
    assert (left.value.code, capsys.readouterr().err) == (status, shown)


def test_a_bug_and_debugging_show_where(monkeypatch):
    for debug, error in ((False, KeyError('x')), (True, ValueError('y'))):
        def work(error=error):
            raise error

        monkeypatch.setattr(main, 'FLAGS', SimpleNamespace(debug=debug))
        with pytest.raises(type(error)):
            main.guarded(work)


@pytest.mark.slow
@pytest.mark.parametrize(('argument', 'message'), [
    ('--config.trian.epochs=3', "Error: unknown config field 'trian'; did you mean"),
    ('--config.defense.eps=-0.1', 'Error: config.defense.eps = -0.1 must be finite and >= 0'),
    ('--config.defense.attack.name=pdg', "Error: unknown attack 'pdg'; did you mean 'pgd'?"),
])
def test_programs_refuse_before_they_write(tmp_path, argument, message):
    assert refusal('train', CONFIG, f'--workdir={tmp_path / "run"}', argument).startswith(message)
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_data_that_are_not_there(tmp_path):
    text = refusal('train', f'--config={ROOT}/configs/pneumoniamnist.py', f'--workdir={tmp_path / "run"}',
                   f'--data_dir={tmp_path}')
    assert str(tmp_path / 'medmnist' / 'pneumoniamnist.npz') in text, 'where it was looked for'
    assert 'https://' in text, 'and how to get it'


def mounted(folder, options):
    folder.mkdir(exist_ok=True)
    command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)]
    if not shutil.which('mount') or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('no small file system could be mounted, which takes root')


@pytest.mark.slow
@pytest.mark.parametrize(('options', 'reason'), [('size=1m', 'No space left'), ('ro', 'Read-only file system')])
def test_a_disk_that_is_full_or_read_only(tmp_path, options, reason):
    disk = tmp_path / 'disk'
    mounted(disk, options)
    try:
        text = refusal('train', CONFIG, f'--workdir={disk / "run"}', '--config.model.options.hidden=(1024,)')
        assert reason in text
    finally:
        subprocess.run(['umount', '--lazy', str(disk)], check=True)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = start('train', CONFIG, f'--workdir={tmp_path}', *ENDLESS)
    wait_for(process, (tmp_path / 'metrics.jsonl').exists)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130
    assert 'Traceback' not in text
    assert text.rstrip().splitlines()[-1].endswith('run the same command again to go on.')
    assert load_for_evaluation(tmp_path, 'latest')[2]['step'] >= 1


@pytest.mark.long
@pytest.mark.slow
def test_an_evaluation_that_is_killed_leaves_what_had_ended(trained, tiny_config):
    """SIGKILL after the first attack's rows are there; the second would take hours."""
    process = start('evaluate', CONFIG, f'--workdir={trained}', '--config.eval.stop_when_fooled=False',
                    '--config.eval.attacks.pgd3.num_restarts=1000000')
    results = trained / 'results.jsonl'
    wait_for(process, lambda: results.exists() and any(row.attack == 'fgsm' for row in read_rows(results)))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert {row.attack for row in read_rows(results)} == {'clean', 'fgsm'}
    assert load_verdicts(trained / 'verdicts' / 'fgsm.npz').acceptable.shape == (2, 32)
    evaluate(tiny_config(), trained, progress=False)
    rows = read_rows(results)
    assert {row.attack for row in rows} == {'clean', 'fgsm', 'pgd3', 'smia3', 'worst_case'}
    assert len({(row.attack, row.eps, row.metric) for row in rows if row.metric != 'auroc'}) == len(
        [row for row in rows if row.metric != 'auroc']), 'replaced, not repeated'


@pytest.mark.slow
def test_reporting_what_was_not_evaluated(tmp_path):
    text = refusal('report', f'--workdir={tmp_path}', f'--out={tmp_path / "report.html"}')
    assert text.splitlines()[0].endswith(f'run experiments.evaluate with --workdir={tmp_path} first')

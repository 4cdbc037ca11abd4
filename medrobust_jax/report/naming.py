"""What metrics are called, which way they point, and which of them speak for a task.

Contents: `Metric`, `METRICS`, `OUT_OF_DISTRIBUTION`, `metric_of`, `split_structure`, `is_explanation`,
`speaks_of_all`, `Kind`, `kind_of`, `headline`.

Example:

    kind = kind_of(rows)                       # of one data set: Kind('landmarks', 'percent')
    metric_of('mean_radial_error', kind).label        # 'mean radial error, % of the height'
"""
from collections.abc import Iterable
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """How a metric is shown: its label, whether in percent, and whether more is better."""

    label: str
    percent: bool = True
    more_is_better: bool = True


class Kind(NamedTuple):
    """What a data set's results are about.

    Attributes:
      task: 'segmentation', 'landmarks', 'detection', 'shape', 'multilabel', or '' for classes and grades.
      unit: of distances: 'px', 'percent' (of the image's height), 'mm', or '' where it is not known.
    """

    task: str = ''
    unit: str = ''


NO_KIND = Kind()
METRICS = {
    'robust_accuracy': Metric('robust accuracy'),
    'accuracy': Metric('accuracy'),
    'certified_accuracy': Metric('certified accuracy'),
    'abstention_rate': Metric('abstention rate', more_is_better=False),
    'balanced_accuracy': Metric('balanced accuracy'),
    'macro_f1': Metric('macro F1'),
    'auroc': Metric('AUROC'),
    'average_precision': Metric('average precision'),
    'micro_auroc': Metric('micro AUROC'),
    'micro_average_precision': Metric('micro average precision'),
    'sensitivity_at_95_specificity': Metric('sensitivity at 95 % specificity'),
    'expected_calibration_error': Metric('expected calibration error', more_is_better=False),
    'quadratic_weighted_kappa': Metric('quadratic-weighted kappa', percent=False),
    'mean_absolute_grade_error': Metric('mean absolute grade error', percent=False, more_is_better=False),
    'exact_match': Metric('all findings right'),
    'dice': Metric('Dice'),
    'iou': Metric('IoU'),
    'hd95': Metric('HD95, pixels', percent=False, more_is_better=False),
    'pixel_accuracy': Metric('pixel accuracy'),
    'cobb_main_error': Metric('error of the main Cobb angle, degrees', percent=False, more_is_better=False),
    'cobb_mean_error': Metric('error of the Cobb angles, degrees', percent=False, more_is_better=False),
    'cobb_smape': Metric('SMAPE of the Cobb angles, %', percent=False, more_is_better=False),
    'polygon_dice': Metric('Dice of the polygon'),
    'mask_dice': Metric('Dice of the mask'),
    'map': Metric('mAP (overlap .5 to .95)'),
    'ap50': Metric('mAP50'),
    'average_iou': Metric('average IoU'),
    'recall': Metric('recall'),
    'precision': Metric('precision'),
    'risk_system': Metric('wrong answers that reach the clinic', more_is_better=False),
    'risk_classifier': Metric('wrong answers', more_is_better=False),
    'detections_per_image': Metric('boxes per image', percent=False),
    'output_dice': Metric('Dice of the two outputs', more_is_better=False),
    'output_point_distance': Metric('distance of their points, pixels', percent=False),
    'reached': Metric('output reached', more_is_better=False),
    'reconstruction_auroc': Metric('AUROC of the reconstruction error'),
}
# Of foreign images that were made to reach a real image's output: no robustness, and with tables of their own.
OUT_OF_DISTRIBUTION = ('output_dice', 'output_point_distance', 'reached', 'reconstruction_auroc')
_DISTANCES = {'mean_radial_error': 'mean radial error', 'mean_point_distance': 'mean point distance'}
_WITHIN = 'detected_within_'
_UNITS = {'px': 'pixels', 'percent': '% of the height', 'mm': 'mm'}
# Metrics of single structures are the metric's name, one of these signs, and the structure's.
_PER_STRUCTURE = {'dice': '_', 'iou': '_', 'hd95': '_', 'ap50': '/', 'recall': '/', 'accuracy': '/', 'auroc': '/',
                  'average_precision': '/'}
# Task: the metric that gives it away, and what leads its tables, the first that was measured under attack.
_TASKS = {'segmentation': ('pixel_accuracy', ('dice',)),
          'shape': ('mean_point_distance', ('mean_point_distance',)),
          'landmarks': ('mean_radial_error', ('mean_radial_error',)),
          'detection': ('ap50', ('ap50',)),
          'multilabel': ('exact_match', ('auroc', 'macro_f1'))}
MAIN = ('robust_accuracy', 'accuracy')
# Explanations: metrics are the method's name, the measure's and maybe '/' and what it is compared with. They have
# tables of their own and lead none: how far a map moved is no quality of an answer.
EXPLANATIONS = {'gradcam': 'Grad-CAM', 'ig': 'integrated gradients'}
MOVEMENTS = {'rank_correlation': Metric('rank correlation', percent=False),
             'top_overlap': Metric('overlap of the top tenth'),
             'center_shift': Metric('shift of the center, of the diagonal', more_is_better=False)}
_OF_SHARE = Metric('within criterion')


def metric_of(name: str, kind: Kind = NO_KIND) -> Metric:
    """How to show a metric; one that is not listed is shown as a plain number under its name.

    The share of acceptable outputs, 'robust_accuracy' in the rows, is called what it is: for the tasks of `Kind`
    an output is acceptable within a criterion, not right or wrong. Distances carry their unit.
    """
    base, structure = split_structure(name)
    if is_explanation(name):
        method, _, measure = name.partition('_')
        measure, _, compared = measure.partition('/')
        shown = MOVEMENTS.get(measure, Metric(measure.replace('_', ' '), more_is_better=False))
        ending = f' ({compared.replace("_", " ")})' if compared else ''
        return shown._replace(label=f'{EXPLANATIONS[method]}: {shown.label}{ending}')
    unit = f', {_UNITS[kind.unit]}' if kind.unit in _UNITS else ''
    if name == 'robust_accuracy' and kind.task:
        return _OF_SHARE
    if name in _DISTANCES:
        return Metric(_DISTANCES[name] + unit, percent=False, more_is_better=False)
    if name.startswith(_WITHIN):
        radius = name.removeprefix(_WITHIN)
        return Metric(f'found within {radius} {_UNITS[kind.unit]}' if unit else f'found within {radius}')
    if structure:
        return METRICS[base]._replace(label=f'{METRICS[base].label}, {structure}')
    return METRICS.get(name, Metric(name.replace('_', ' '), percent=False))


def split_structure(name: str) -> tuple[str, str]:
    """The metric and the structure, class or finding it is of; the latter '' for a metric of all."""
    for base, sign in _PER_STRUCTURE.items():
        if name.startswith(base + sign):
            return base, name.removeprefix(base + sign)
    return name, ''


def is_explanation(name: str) -> bool:
    """Whether a metric is of explanations (Grad-CAM, integrated gradients), not of answers."""
    return name.partition('_')[0] in EXPLANATIONS


def speaks_of_all(name: str) -> bool:
    """Whether a metric is of answers, of all structures, and of the images that a model was made for."""
    return not split_structure(name)[1] and name not in OUT_OF_DISTRIBUTION and not is_explanation(name)


def kind_of(rows: Iterable[Any]) -> Kind:
    """What the rows of one data set are about, told from the metrics that they hold.

    The unit is what the rows' provenance says under 'unit'. Where it says nothing: pixels for shapes, percent
    where landmarks were looked for within 1, which no other unit's radii hold (`metrics.landmarks.RADII`).
    """
    rows = list(rows)
    measured = {row.metric for row in rows}
    task = next((name for name, (telltale, _) in _TASKS.items() if telltale in measured), '')
    said = next((str(row.provenance['unit']) for row in rows if row.provenance.get('unit')), '')
    guess = {'shape': 'px', 'landmarks': 'percent' if f'{_WITHIN}1' in measured else ''}.get(task, '')
    return Kind(task, said or guess)


def headline(rows: Iterable[Any]) -> list[str]:
    """The metrics that speak for the rows of one data set: the task's own, then the share of acceptable outputs.

    Of candidates the first that was measured under attack, else the first at hand; for classes and grades
    robust accuracy alone, else accuracy, else whatever comes first. Results on foreign images speak for none.
    """
    rows = [row for row in rows if speaks_of_all(row.metric)]
    measured = list(dict.fromkeys(row.metric for row in rows))
    attacked = {row.metric for row in rows if row.attack != 'clean'}
    task = kind_of(rows).task

    def first(candidates: Iterable[str]) -> list[str]:
        known = [name for name in candidates if name in measured]
        return [name for name in known if name in attacked][:1] or known[:1]

    if not task:
        return first((*MAIN, *measured))
    share = [name for name in ('robust_accuracy',) if name in measured]
    return first(_TASKS[task][1]) + share

"""What the words on the page mean, for readers who know medicine better than machine learning.

Contents: `glossary_of`.

Example:

    for term, text in glossary_of({'dice', 'hd95'}):
        print(f'{term}: {text}')
"""
from collections.abc import Collection

_ALWAYS = (
    ('adversarial example', 'An image changed on purpose, by so little that a reader would not call it another '
     'image, such that a model answers differently. It shows what a model relies on; it need not come from an '
     'attacker to matter.'),
    ('attack', 'The procedure that searches for such a change. An attack shows that a model can be broken; that '
     'one failed is no proof that none succeeds, so robust scores are upper bounds.'),
    ('eps', 'How much the attack may change the image. For the L-infinity norm: no pixel by more than eps. '
     'Pixels run from 0 (black) to 1 (white), so 8/255 is eight gray levels of an 8-bit image, about 3 % of the '
     'full range. For the L2 norm: the root of the sum of all squared pixel changes.'),
    ('clean', 'Unchanged images; eps is 0.'),
    ('robust accuracy', 'The share of images on which the model still meets the criterion after the attack: that '
     'its class is right or, for grades, close enough where a tolerance was set.'),
    ('worst attack', 'At each eps, the result of the attack that did most harm to the whole set. Somebody who '
     'picks the attack for each image does at least as much harm; "worst per image" is that number, the share '
     'of images that withstood every attack.'),
    ('area', 'The mean height of the curve between eps 0 and the largest eps: one number for a whole curve. '
     'Compare areas over equal ranges only.'),
    ('95 % interval', 'The test set is a sample. Had other patients been drawn, the number would have come out '
     'differently; an interval made this way holds the true value in 95 of 100 such samples. Where the '
     'intervals of two models overlap widely, the data do not tell them apart. It does not cover other '
     'scanners, hospitals or populations, nor the randomness of training.'),
    ('bootstrap over patients', 'Images of one patient resemble each other. Where patients are known, whole '
     'patients are redrawn, which gives an honest, wider interval.'),
    ('runs', 'The same training repeated with another random seed; the table shows the mean, with the lowest '
     'and highest run.'),
    ('defense', 'How the model was trained. "standard" is ordinary training; adversarial training (pgd_at, '
     'trades, ...) attacks the images while learning from them.'),
    ('forward and backward passes', 'What an attack costs: how often it evaluates the model, and its gradient, '
     'per image. Compare attacks at equal cost.'),
    ('fingerprint', 'A short code computed from a file or a setting; equal codes mean equal contents.'),
)
# Metrics that call for an entry, by the start of their names; its term; its text.
_OF_METRICS = (
    (('pixel_accuracy', 'mean_radial_error', 'mean_point_distance', 'ap50', 'exact_match'), 'within criterion',
     'The share of images on which the output is still good enough after the attack: no worse than a '
     'threshold, such as a Dice, which was measured on a clean-trained model or set. For findings: at most so '
     'many wrong.'),
    (('dice', 'mask_dice', 'polygon_dice'), 'Dice',
     'How well two areas agree: twice the pixels that both hold, divided by the sum of their pixels. 100 % is '
     'the same area, 0 none in common.'),
    (('iou',), 'IoU',
     'Intersection over union: the pixels that both areas hold, divided by those that at least one holds. '
     'Never above Dice.'),
    (('hd95',), 'HD95',
     'The 95th percentile of the distances between the outlines of the two areas, in pixels; lower is better. '
     'It sees a far-off speck that Dice hardly notices. A structure that is lost altogether counts as the '
     "image's diagonal."),
    (('mean_radial_error',), 'MRE',
     'Mean radial error: how far landmarks are from their true places on average, in the unit stated; lower is '
     'better.'),
    (('detected_within',), 'SDR',
     'Successful detection rate, here "found within": the share of landmarks that are no farther than so much '
     'from their true places.'),
    (('cobb',), 'Cobb angle',
     'The angle between the most tilted vertebrae, by which the curvature of a spine is graded; the errors are '
     'in degrees. SMAPE is the error of the three angles divided by their size, in percent.'),
    (('mean_point_distance',), 'mean point distance',
     'How far the points of a boundary are from their true places on average; lower is better.'),
    (('ap50', 'map'), 'mAP',
     'Mean average precision: as boxes of falling score are accepted, precision is averaged over recall, then '
     'over classes. mAP50 counts a box as found where the overlap (IoU) with the true one reaches 50 %; mAP is '
     'the mean over overlaps from 50 to 95 %.'),
    (('average_iou',), 'average IoU',
     'avIoU: the overlap of every true box with the box the model gives it, 0 where it gives none, on average.'),
    (('exact_match',), 'all findings right',
     'The share of images on which no finding is missed and none is made up.'),
    (('auroc',), 'AUROC',
     'How often an image with a finding gets a higher score than one without; 50 % is chance. With several '
     'findings, the mean over them.'),
    (('risk_system',), 'detector',
     'A second judge beside the classifier: it gives every image a score of how much it looks like the clean '
     'images it has seen, and rejects those below a threshold. The threshold is set so that it rejects about 5 % '
     'of clean images, which then go to a human without need.'),
    (('risk_system',), 'aware attack',
     'An attack by somebody who knows the detector: it looks for an image that is both misclassified and '
     'accepted. Only this number says what a detector is worth against an attacker who has done his homework.'),
    (('output_dice',), 'out of distribution',
     'Images that are nothing of what a model was made for. "Dice of the two outputs" compares what the model '
     'says of such an image with what it says of a real one: near 100 % it was fooled, and low values are good. '
     '"As they are" is the control: the same images before the attack changed them.'),
    (('reconstruction_auroc',), 'AUROC of the reconstruction error',
     'How often a network that rebuilds its input rebuilds a foreign image worse than a real one. 100 %: the '
     'error tells every foreign image; 50 %: chance; below: foreign images look more familiar than real ones.'),
    (('micro_',), 'micro',
     'Over all pairs of an image and a finding at once, instead of as a mean over findings: frequent findings '
     'weigh more.'),
    (('gradcam',), 'Grad-CAM',
     'A coarse map of the regions that raise the score of a class, made from the last feature maps of the network '
     'and their gradients. It shows what the score depends on; that a region is bright does not say that the '
     'finding is there, or that the answer is right.'),
    (('ig_',), 'integrated gradients',
     'A map of how much each pixel adds to the score of a class, compared with a reference image (black, unless '
     'stated otherwise: black pixels then have no part in it). The values sum to the rise in score over the '
     'reference; completeness gap is the share that the computed map misses.'),
    (('gradcam', 'ig_'), 'movement of a map',
     'Rank correlation: whether pixels come in the same order of importance, from 1 (the same) over 0 (unrelated) '
     'to -1. Overlap of the top tenth: what the most important 10 % of the pixels have in common, divided by what '
     'either map holds. Shift of the center: the distance of the centers of mass, as a share of the '
     "image's diagonal."),
    (('gradcam', 'ig_'), 'noise of the same size',
     "The attack's own change, its values scattered to random places with random signs: as large as the attack "
     'in every norm, but without aim. What this noise does to a map is no work of the attack; "attack minus '
     'noise" is the rest, image by image.'),
    (('margin',), 'margin',
     'The radius that adversarial training with adaptive margins (AMAT, IMA, MMA) gives to each training '
     'example: as far as it can be changed before the output leaves the criterion. Margins that grow and '
     'spread say that training has found out which examples are easy; a heap at 0 holds those that never met '
     'the criterion.'),
)


def glossary_of(metrics: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of a term and its text.

    Args:
      metrics: names of the metrics at hand, without structures; and 'margin' where margins are shown.

    Returns:
      What every page needs, and what these metrics need.
    """
    own = [(term, text) for starts, term, text in _OF_METRICS if any(name.startswith(starts) for name in metrics)]
    at = next(number for number, (term, _) in enumerate(_ALWAYS) if term == 'worst attack')
    if any(term == 'within criterion' for term, _ in own):
        return [*(entry for entry in _ALWAYS[:at] if entry[0] != 'robust accuracy'), *own, *_ALWAYS[at:]]
    return [*_ALWAYS[:at], *own, *_ALWAYS[at:]]

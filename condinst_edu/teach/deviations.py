"""All deviations: named wrong or ablated variants of the library's functions, as plain data.

The exercise checkers name them, lessons switch to them to break things, miniature tables take their ablation rows
from them. A new one is a function in `condinst_edu.teach.variants` and an entry in the table here.
"""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from condinst_edu.teach.variants import lesson_00 as l0
from condinst_edu.teach.variants import lesson_01 as l1
from condinst_edu.teach.variants import lesson_02 as l2
from condinst_edu.teach.variants import lesson_03 as l3
from condinst_edu.teach.variants import lesson_04 as l4
from condinst_edu.teach.variants import lesson_05 as l5
from condinst_edu.teach.variants import lesson_06 as l6
from condinst_edu.teach.variants import lesson_07 as l7
from condinst_edu.teach.variants import lesson_08 as l8
from condinst_edu.teach.variants import lesson_09 as l9
from condinst_edu.teach.variants import lesson_10 as l10


@dataclass(frozen=True)
class Deviation:
    """A variant of a function: what it is of (dotted name), the id of the paper row that it stands for, if any.

    line: what it is, and what it does to the result; function: has the signature of what it replaces.
    """

    name: str
    of: str
    row: str | None
    line: str
    function: Callable[..., Any]


# The function that is varied: {variant: what it is and does}. A deviation's name is its function's, with hyphens.
_TABLE: dict[str, dict[Callable[..., Any], str]] = {
    "condinst_edu.teach.scoring.mask_iou": {
        l0.iou_of_boxes: "the IoU of the boxes around the masks: two objects that cross share a box and hardly a pixel",
        l0.iou_over_first_area: "the overlap over the detection's area alone: a tiny mask within the object scores 1",
        l0.iou_overlap_counted_twice: (
            "the overlap over the sum of the areas: shared pixels count twice, and 1 is never reached"
        ),
        l0.iou_crowd_own_area: "a crowd's own area as the union: it is the detection's own area",
        l0.iou_crowd_as_object: (
            "a crowd treated like an object: one person within a crowd seems to miss nearly all of it"
        ),
    },
    "condinst_edu.teach.scoring.rle_counts": {
        l0.rle_row_by_row: (
            "runs counted along rows, but COCO counts down the columns: decoded, the mask comes out scrambled"
        ),
        l0.rle_without_leading_zeros: (
            "no run of 0 zeros in front of a mask that begins with a one: decoded, it is inverted"
        ),
        l0.rle_ones_first: "runs that begin with ones, but COCO begins with zeros: decoded, the mask is inverted",
    },
    "condinst_edu.teach.scoring.match_objects": {
        l0.match_twice: "an object found more than once: repeating a good detection raises the score",
        l0.match_first: (
            "the first object above the threshold instead of the best: another detection's object is taken away"
        ),
        l0.match_above: "more than the threshold instead of at least: an IoU that equals it is a hit",
        l0.match_crowd_once: "a crowd used up by its first detection: all others within it count as mistakes",
        l0.match_ignored_as_others: (
            "ignored objects on a par with the others: they lure detections away from what counts"
        ),
    },
    "condinst_edu.teach.scoring.average_precision": {
        l0.ap_without_interpolation: (
            "the precision at each recall itself, not the best at this or a higher one: AP is too low"
        ),
        l0.ap_at_11_recalls: "precision read at 11 recalls, as PASCAL VOC did until 2009: COCO reads 101",
        l0.ap_of_unsorted_scores: (
            "detections in the order given, not by falling score: AP then measures the order of the files"
        ),
        l0.ap_of_rising_scores: "by rising score: the least sure detections come first",
        l0.ap_of_found_objects: (
            "recall among the objects that were found, not among all: missing objects costs nothing"
        ),
    },
    "condinst_edu.coordinates.locations": {
        l1.locations_at_corner: (
            "no half stride: a cell stands for its top left pixel, and all boxes and masks shift by stride // 2"
        ),
        l1.locations_swapped: "(y, x) instead of (x, y): right on the diagonal only",
        l1.locations_by_columns: (
            "column by column: flattened feature maps go row by row, so every cell gets another's pixel"
        ),
        l1.locations_in_cells: "counted in cells, not in pixels: levels of different stride no longer share a scale",
    },
    "condinst_edu.fcos.assign_targets": {
        l1.assign_largest: "the largest of several boxes wins: small objects in front of large ones are never learnt",
        l1.assign_whole_box: (
            "every location in the box is positive (FCOS before centre sampling): edges give poor boxes"
        ),
        l1.assign_radius_in_pixels: (
            "the radius taken in pixels, not in strides: coarse levels keep next to no positives"
        ),
        l1.assign_open_ranges: "ranges without their ends: a distance that falls on a limit belongs to no level",
        l1.assign_closed_radius: "the radius with its end: a location is positive only strictly within it",
        l1.assign_box_middle: "the radius around the middle of the box: it is around `centers`, here the mass centres",
        l1.assign_outside_too: "locations outside the box as well: their distances would be negative",
        l1.assign_in_pixels: "distances in pixels: what the network predicts is divided by the level's stride",
        l1.assign_every_level: (
            "no ranges: every level answers for every object, and overlapping objects compete on all of them"
        ),
    },
    "condinst_edu.fcos.centerness": {
        l1.centerness_without_root: (
            "no square root: the value falls off too fast, and good boxes near the middle lose score"
        ),
        l1.centerness_of_all_sides: "smallest over largest of all four: the middle of a long box no longer has 1",
        l1.centerness_inverted: (
            "larger over smaller: 1 in the middle and larger towards the edges, which are then preferred"
        ),
        l1.centerness_of_neighbours: "left compared with top and right with bottom: opposite sides belong together",
    },
    "condinst_edu.teach.references.focal_loss": {
        l1.focal_without_alpha: "no alpha: targets of 0 and 1 weigh the same",
        l1.focal_alpha_swapped: "alpha and 1 - alpha swapped: alpha belongs to the targets of 1",
        l1.focal_without_gamma: (
            "gamma of 0, weighted cross-entropy: thousands of easy background locations drown the few objects"
        ),
        l1.focal_mean: "the mean instead of the sum: the loss shrinks with the number of locations and classes",
        l1.focal_softmax: "softmax over the classes: they then compete, and none has room for background",
    },
    "condinst_edu.layers.losses.giou_loss": {
        l1.giou_plain_iou: "plain IoU without the enclosing box: what is empty between the boxes costs nothing",
        l1.giou_penalty_sign: "the penalty subtracted from the loss: empty space between the boxes is rewarded",
        l1.giou_not_a_loss: "the generalised IoU itself: the loss is one minus it, or training drives boxes apart",
        l1.giou_sides_as_sizes: "right and bottom distances taken for width and height: width is left + right",
    },
    "condinst_edu.fcos.decode": {
        l1.decode_exponential: "distances exponentiated, as the first FCOS had it: here the head ends in a ReLU",
        l1.decode_without_stride: "distances not multiplied by the stride: every box is a few pixels large",
        l1.decode_swapped: "left with top and right with bottom swapped: boxes are mirrored at the diagonal",
        l1.decode_size: "x, y, width, height instead of two corners: COCO's files have it so, torchvision does not",
    },
    "condinst_edu.teach.references.count_parameters": {
        l2.count_without_biases: "the weights alone (152 of 169): each output of a layer has a bias as well",
        l2.count_biases_of_inputs: "a bias for each input: a layer adds one number to each output",
        l2.count_3x3: (
            "3x3 filters: the mask head's are 1x1, or the controller would have to predict nine times as much"
        ),
    },
    "condinst_edu.mask_head.split_parameters": {
        l2.split_biases_first: "biases before weights: filters learned in the official order draw nothing of use",
        l2.split_by_columns: "weights read (in, out) instead of (out, in): every filter gets the numbers of others",
        l2.split_features_first: "features before coordinates in layer 1: x and y come first",
        l2.split_layer_by_layer: "each layer's biases behind its weights: all weights come first, then all biases",
    },
    "condinst_edu.mask_head.run_layers": {
        l2.dynamic_without_relu: (
            "no ReLU: three linear layers are one, and a mask is whatever lies on one side of a plane"
        ),
        l2.dynamic_relu_last: "a ReLU after the last layer too: what should be below 0 is 0, right on the threshold",
        l2.dynamic_without_biases: "the biases left out: borders cannot shift, and logits may never get above 0",
        l2.dynamic_first_filters: "the first instance's filters for all: every instance gets the same mask",
        l2.dynamic_wrong_groups: (
            "grouped over the wrong axis: channels of one instance run into the filters of another"
        ),
    },
    "condinst_edu.layers.losses.dice_loss": {
        l2.dice_without_squares: (
            "no squares in the denominator: V-Net's dice, which the paper uses, squares the scores"
        ),
        l2.dice_of_the_batch: "summed over all masks at once: small objects vanish beside large ones",
        l2.dice_one_number: "one number for all masks: summed over the batch, small objects vanish beside large ones",
        l2.dice_not_a_loss: "the coefficient itself: the loss is one minus it, or training drives masks apart",
        l2.dice_smoothed: "1 added to numerator and denominator: small masks seem better than they are",
        l2.dice_without_two: "no factor of 2: even a perfect mask has a loss of one half",
    },
    "condinst_edu.coordinates.relative_coordinates": {
        l3.relative_flipped: (
            "location - pixel instead of pixel - location: the official code has it so, and its checkpoints expect it"
        ),
        l3.relative_to_the_middle: (
            "absolute coordinates, from the middle of the map: two alike objects can no longer be told apart by "
            "their own place"
        ),
        l3.relative_not_scaled: (
            "not divided by the scale: pixels, 64 times and more too large, and large objects look unlike small ones"
        ),
        l3.relative_swapped: "the y map before the x map: filters read one for the other",
        l3.relative_in_cells: "counted in cells instead of pixels: too small by the stride",
        l3.relative_at_corner: "cells at their top left pixels: the maps are off by stride // 2 pixels",
    },
    "condinst_edu.coordinates.absolute_coordinates": {
        l3.absolute_from_corner: "within [0, 1] instead of [-1, 1]: the origin is in the corner, not in the middle",
        l3.absolute_swapped: "the y map before the x map: filters read one for the other",
        l3.absolute_in_pixels: "in pixels, not within [-1, 1]: the filters would have to be hundreds of times smaller",
    },
    "condinst_edu.teach.references.fold_coordinates": {
        l3.fold_sign: "the offset added: W (p - c) / s = W p / s - W c / s has a minus",
        l3.fold_unscaled_offset: "the offset not divided by the scale: W c has to become W c / s",
        l3.fold_keeps_bias: (
            "the bias left as it is: the origin stays in the corner, and all instances draw the same place"
        ),
    },
    "condinst_edu.layers.upsample.aligned_upsample": {
        l3.upsample_half_pixel: (
            "half-pixel centres, PyTorch's default: half a cell of the result away from where the official code puts it"
        ),
        l3.upsample_from_corner: "output k reads k / factor: without the shift of factor // 2, masks move up and left",
        l3.upsample_align_corners: (
            "first on first and last on last cell: the stride changes, and the error grows along the map"
        ),
        l3.upsample_nearest: "nearest neighbours: the mask keeps its coarse steps, and a finer target teaches nothing",
    },
    "condinst_edu.condinst.sample_locations": {
        l4.sample_by_class_only: "ranked by the class score alone: inference ranks by class score times centre-ness",
        l4.sample_by_centerness_only: "ranked by centre-ness alone: inference ranks by class score times centre-ness",
        l4.sample_by_best_class: "ranked by the best class, as AdelaiDet does it: here by the object's own class",
        l4.sample_background_too: (
            "background locations in the ranking: they take the places of those that have a mask to learn"
        ),
        l4.sample_the_worst: "the lowest scores first: masks are trained where inference will never look",
    },
    "condinst_edu.condinst.mask_nms": {
        l4.nms_by_box: "NMS by boxes: objects that cross each other suppress one another, but no mask is needed for it",
        l4.nms_across_classes: "classes suppress each other: a rider removes the horse",
        l4.nms_not_greedy: "what is itself suppressed still suppresses others: too few are left",
        l4.nms_unsorted: "in the order given instead of by falling score: weak detections suppress sure ones",
    },
    "condinst_edu.condinst.semantic_map": {
        l4.semantic_largest: "the largest object on top: whatever lies in front of it is gone",
        l4.semantic_last: "the last object of the file on top: the order in a file means nothing",
        l4.semantic_from_corner: "read at pixels 0, s, 2s, ...: cells sit on pixels s//2, s + s//2, ...",
        l4.semantic_instances: "which object, not which class: a semantic map has labels",
    },
    "condinst_edu.dr1mask.rank1_weight": {
        l6.rank_one_added: "b a^T added: Eq. 1 multiplies, and only then can a and b be taken out of the product",
        l6.rank_one_without_a: "without a: rows are scaled, columns are not",
        l6.rank_one_without_b: "without b: columns are scaled, rows are not",
        l6.rank_one_matrix_product: "a matrix product: the small circle multiplies number by number",
    },
    "condinst_edu.dr1mask.dr1conv": {
        l6.dr1conv_b_before: (
            "B before the convolution: it scales the inputs' channels like A, and has no say over the output"
        ),
        l6.dr1conv_as_printed: (
            "Eq. 3 as printed, B inside the sum: every position scales what it gives, none what it takes"
        ),
        l6.dr1conv_swapped: "A and B swapped: A is for the inputs, B for the outputs",
        l6.dr1conv_both_after: "A after the convolution too: the kernel sees what A was to hide from it",
        l6.dr1conv_without_a: "without A: only the outputs are scaled",
        l6.dr1conv_without_b: "without B: only the inputs are scaled",
    },
    "condinst_edu.layers.unified.mean_embeddings": {
        l6.embeddings_summed: "the sum, not the mean: objects with many locations get the larger logits",
        l6.embeddings_over_all: "divided by all locations of the image: every column is too small, and small ones most",
        l6.embeddings_of_the_last: "the last location's embedding: the others of the object do not learn",
    },
    "condinst_edu.layers.upsample.upsample_to": {
        l6.upsample_to_official: (
            "the official aligned upsampling: one fine cell too far right and down, at every step of the pyramid"
        ),
        l6.upsample_to_half_pixel: (
            "half-pixel centres, PyTorch's default: half a fine cell off from where strided convolutions put things"
        ),
        l6.upsample_to_stretched: (
            "stretched to the finer map's size: at odd sizes the factor is not 2, and the error grows along the map"
        ),
        l6.upsample_to_cut_at_the_start: "cut at the left and at the top: what is surplus lies on the right and below",
    },
    "condinst_edu.blendmask.merge_bases": {
        l5.merge_without_softmax: (
            "no softmax: weights of any size and sign, and attention of the same value everywhere is no longer a mean"
        ),
        l5.merge_softmax_first: (
            "softmax before the resizing: the weights still sum to 1, but where two bases meet they change more gently"
        ),
        l5.merge_softmax_over_cells: (
            "softmax over the cells instead of over the bases: the weights shrink with the number of cells"
        ),
        l5.merge_nearest: "nearest neighbours: the attention keeps its coarse steps, along which the mask gets seams",
        l5.merge_mean: "the mean over the bases: the weights sum to 1 already, and logits come out K times too small",
        l5.merge_vector: (
            "attention averaged to one cell, YOLACT's vector: it cannot treat one part of the box unlike another"
        ),
    },
    "condinst_edu.blendmask.crop_bases": {
        l5.crop_not_aligned: (
            "no half cell off: cell 0 has its middle at half a stride, so the crop lies half a stride right and below"
        ),
        l5.crop_at_corners: (
            "from edge to edge: a cell's sample belongs into its middle, and masks come out a little too small"
        ),
        l5.crop_rounded: "boxes rounded to whole cells, as RoIPool does: masks are off by up to half a stride",
        l5.crop_swapped: "x and y swapped: right for square boxes on the diagonal only",
        l5.crop_in_pixels: "boxes not divided by the stride: the crop reads beyond the map",
    },
    "condinst_edu.blendmask.paste_masks": {
        l5.paste_from_corner: "read at the pixels' corners: all masks move half a pixel right and down",
        l5.paste_rounded: "boxes rounded to whole pixels first: small masks lose or gain a row",
        l5.paste_clamped: (
            "the outermost cells drawn out to the edge of the box: beyond their middles, scores fade to 0"
        ),
        l5.paste_nearest: "nearest neighbours: each cell becomes a block of pixels",
        l5.paste_transposed: "rows and columns of the mask swapped: mirrored at the diagonal of the box",
    },
    "condinst_edu.teach.references.factored_attention": {
        l5.factored_transposed: "V and U swapped: every attention map comes out transposed",
        l5.factored_without_factors: "without the factors: all instances get the same attention",
        l5.factored_one_map: "one map for all bases: each base has its own U_k, V_k and factors",
    },
    "condinst_edu.teach.references.adain": {
        l7.adain_of_the_batch: "statistics of the whole batch (batch norm): one instance's maps change another's",
        l7.adain_over_channels: "statistics over the channels too (layer norm): strong channels drown the others",
        l7.adain_one_on_the_shift: (
            "1 added to the shift, as in the official PyTorch branch: it was meant for the scale"
        ),
        l7.adain_not_normalised: "no normalisation: a map's own mean and contrast stay, beside the vector's",
        l7.adain_by_variance: "divided by the variance, not by its square root",
        l7.adain_unbiased: "the variance of a sample (pixels - 1): small maps come out smaller",
    },
    "condinst_edu.coordinates.relative_coordconv": {
        l7.coordconv_flipped: "point - pixel instead of pixel - point: masks grow to the wrong side",
        l7.coordconv_swapped: "the y map before the x map: filters read one for the other",
        l7.coordconv_not_clipped: "not clipped to [-1, 1]: numbers far from the point that training never saw",
        l7.coordconv_to_the_middle: (
            "the middle of the map in place of the point: absolute coordinates, the same for all points"
        ),
        l7.coordconv_in_cells: "cells counted, not pixels: too small by the stride",
        l7.coordconv_half_a_stride: "cells at stride * j + stride // 2, as CondInst has them: AdaptIS counts from 0",
    },
    "condinst_edu.layers.losses.normalized_focal_loss": {
        l7.nfl_not_normalised: "not divided by P: the plain focal loss, whose gradient fades as masks get better",
        l7.nfl_as_a_mean: "divided by the number of pixels, not by P: the focal loss again, as a mean",
        l7.nfl_of_the_batch: "one P for all masks: a bad mask takes the weight from the others",
        l7.nfl_is_bce: "all weights 1: the mean cross-entropy, which easy pixels dominate",
    },
    "condinst_edu.teach.references.greedy": {
        l7.greedy_by_iou: "IoU with each kept mask, as NMS has it: a small mask within a large one is kept",
        l7.greedy_mask_by_mask: "compared with each kept mask alone: one that several cover together is kept",
        l7.greedy_first_come: "a pixel stays with the first mask that took it: in the end the most confident gets it",
        l7.greedy_keeps_all: "no test of the overlap: every object is found as often as it is asked for",
        l7.greedy_without_overlap: "no overlap allowed at all: touching objects lose each other",
    },
    "condinst_edu.datasets.batching.batch_indices": {
        l10.share_of_nobody: "the same images in every process: all of them do the work of one",
        l10.share_per_process: "a whole batch for each process: more processes then mean another batch and schedule",
        l10.share_of_own_order: (
            "a seed of its own for each process: the orders differ, so some images come twice in an epoch, others never"
        ),
        l10.share_of_one_epoch: "the first epoch's order again in every epoch: the batches repeat",
        l10.share_in_turns: (
            "every world-th image instead of a block: together it is the same batch and would do as well, "
            "but blocks are what is asked"
        ),
    },
    "condinst_edu.teach.references.share_normalisers": {
        l10.divide_by_own: (
            "each its own count: a positive weighs more where there are few, most where it is the only one"
        ),
        l10.divide_by_total: (
            "the total, but gradients are averaged afterwards: they come out as many times too small as there are "
            "processes"
        ),
        l10.divide_by_clamped: "the mean of counts that are at least `least` each: empty processes count as positives",
        l10.divide_by_mean_at_least: "`least` for each process: where positives are few, more processes weaken them",
    },
    "condinst_edu.panoptic.split_target": {
        l9.split_void_as_things: "void learned as a thing: the branch is taught that nothing is something",
        l9.split_things_as_void: "things left out of the map: the branch never learns where stuff ends",
        l9.split_keeps_labels: "stuff with the labels of the data set: its classes begin at 1, behind that of things",
        l9.split_stuff_from_zero: "stuff from 0: its first class is taken for things",
    },
    "condinst_edu.panoptic.fuse": {
        l9.fuse_in_any_order: "instances in the order in which they come: a doubtful one covers a sure one",
        l9.fuse_lets_rejected_block: (
            "an instance that is left out keeps its pixels from those after it: they shrink, or are left out too"
        ),
        l9.fuse_keeps_all_things: "no limit on what an instance may lose: its crumbs become segments, all false",
        l9.fuse_keeps_small_stuff: "no least area of stuff: specks of a wrong class become segments, all false",
        l9.fuse_stuff_first: "stuff before things: whatever the semantic branch takes for stuff cuts into them",
    },
    "condinst_edu.teach.references.segment_counts": {
        l9.match_void_counts: "void like any other pixel: what is found where nobody labelled anything is a mistake",
        l9.match_any_category: "matches without a look at the category: a cat found as a dog is right",
        l9.match_crowds_as_things: "a crowd as one large thing: it is missed by whoever finds the people in it",
        l9.match_forgives_nothing: "every segment without a match is a mistake, also within a crowd or on void",
    },
    "condinst_edu.teach.references.panoptic_numbers": {
        l9.quality_of_all_segments: "mistakes of both kinds counted whole: RQ is then no F1 score, and too low",
        l9.quality_without_misses: "the precision in the place of RQ: what was missed costs nothing",
        l9.quality_mean_over_segments: "SQ over all segments: mistakes count twice, in SQ and in RQ",
    },
    "condinst_edu.teach.references.learning_rates": {
        l10.rates_without_warmup: "no warm-up: the first steps, in which gradients are largest, are whole ones",
        l10.rates_from_zero: "a warm-up from 0: it begins at `factor` times the peak",
        l10.rates_one_step: "a tenth once, at the first milestone: each one divides the rate again",
        l10.rates_one_late: "strictly after the milestone: its iteration is the first with the lower rate",
        l10.rates_not_scaled: "the rate for 16 images, whatever the batch: too small for more, too large for fewer",
        l10.rates_by_root: (
            "scaled by the root of the batch, as is often done with Adam: for SGD the rate goes with the batch itself"
        ),
    },
    "condinst_edu.coordinates.coordconv": {
        l8.coordconv_missing: "all coordinates 0: the mask branch is no longer told where a cell is",
        l8.coordconv_swapped: "the y map before the x map: filters read one for the other",
        l8.coordconv_from_corner: "within [0, 1] instead of [-1, 1]: the origin is in the corner, not in the middle",
        l8.coordconv_edge_to_edge: (
            "-1 and 1 at the edges of the map, not at its outermost cells: off by a share of a cell"
        ),
    },
    "condinst_edu.solo.claimed_cells": {
        l8.cells_swapped: "rows and columns swapped: each grid transposed, objects go to cells they are not in",
        l8.cells_of_the_centre: "the centre's cell alone: fewer positive cells, and each object hangs on one",
        l8.cells_of_the_box: "around the middle of the box: it is around `centers`, the mass centres",
        l8.cells_without_limit: "the whole centre region: at most one cell on each side of the centre's counts",
        l8.cells_of_height_and_width: "size read as (width, height): cells of an image that is not square are wrong",
    },
    "condinst_edu.solo.points_nms": {
        l8.points_of_all_neighbours: "all eight neighbours: here it is those above, on the left and above left",
        l8.points_of_the_other_side: "those below and on the right: here it is those above and on the left",
        l8.points_across_classes: "classes suppress each other: two objects of different classes share a corner",
        l8.points_above_and_left: "without the neighbour above left: two cells on a diagonal both survive",
    },
    "condinst_edu.solo.matrix_nms": {
        l8.matrix_without_compensation: (
            "not divided by f(c_i): what is itself a repetition lowers others as if it were an object"
        ),
        l8.matrix_across_classes: "classes suppress each other: a rider removes the horse",
        l8.matrix_of_products: "the product of all decays, not the smallest: many small overlaps remove a good mask",
        l8.matrix_by_the_worse: "worse masks lower better ones: the best of a heap loses most",
        l8.matrix_not_squared: "the IoU not squared in the exponent: small overlaps cost far too much",
    },
    "condinst_edu.teach.references.decoupled_masks": {
        l8.decoupled_swapped: "i and j swapped: k // S is the row, k % S the column",
        l8.decoupled_sum: "logits added: the product of two probabilities is smaller than the probability of a sum",
        l8.decoupled_logits: "logits multiplied: two cells that are surely outside, both negative, become inside",
        l8.decoupled_smaller: "the smaller of the two in place of the product",
    },
}

# Rows of papers that a deviation stands for.
_ROWS = {
    "relative-to-the-middle": "condinst:table-3",
    "nms-by-box": "condinst:table-5",
    "dr1conv-without-a": "dr1mask:table-1",
    "dr1conv-without-b": "dr1mask:table-1",
    "upsample-to-stretched": "dr1mask:table-5",
    "nfl-not-normalised": "adaptis:table-7",
    "nfl-is-bce": "adaptis:table-7",
}


def _entry(of: str, line: str, function: Callable[..., Any]) -> Deviation:
    name = function.__name__.replace("_", "-")
    return Deviation(name, of, _ROWS.get(name), line, function)


DEVIATIONS = {d.name: d for d in (_entry(of, line, f) for of, lines in _TABLE.items() for f, line in lines.items())}


def deviations_of(symbol: str) -> tuple[str, ...]:
    """Names of all deviations of a function, given by its dotted name."""
    return tuple(name for name, deviation in DEVIATIONS.items() if deviation.of == symbol)


@contextmanager
def deviate(name: str) -> Iterator[Deviation]:
    """Within the block the whole library uses a wrong variant in the place of the right function, for a break-it cell.

    Errors: ValueError where there is no such deviation.
    """
    if name not in DEVIATIONS:
        near = difflib.get_close_matches(name, DEVIATIONS, n=1)
        raise ValueError(f"there is no deviation {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    deviation = DEVIATIONS[name]
    path, _, symbol = deviation.of.rpartition(".")
    home = importlib.import_module(path)
    right = getattr(home, symbol)
    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("condinst_edu.") and not name.startswith(("condinst_edu.teach.", "condinst_edu.bench"))
        if getattr(module, symbol, None) is right
    ]
    if not any(user is not home for user in users) and not re.search(
        rf"(?<!def )\b{symbol}\(", inspect.getsource(home)
    ):
        raise ValueError(f"{name} is a variant of {symbol}, which the models do not call: it would change nothing")
    for user in users:
        setattr(user, symbol, deviation.function)
    try:
        yield deviation
    finally:
        for user in users:
            setattr(user, symbol, right)

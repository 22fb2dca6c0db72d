"""What the project answers for in DR1Mask."""

from condinst_edu.papers.forms import Item

ITEMS = (
    Item(
        id="dr1mask:eq-1",
        title="A weight matrix times a matrix of rank one",
        section="2",
        formula=r"W' = W \circ M, \quad M = b a^\top, \quad W, M \in \mathbb{R}^{m \times d}",
        symbols=("condinst_edu.dr1mask.rank1_weight",),
        naive=("condinst_edu.papers.naive_dr1mask.eq_1",),
        tests=("tests/test_dr1mask.py::test_rank_one_weight",),
        status="equal",
    ),
    Item(
        id="dr1mask:eq-2",
        title="DR1Conv with a 1x1 kernel: other factors at every position",
        section="3.1",
        formula=r"y_{hw} = W'_{hw} x_{hw} = \left(W (x_{hw} \circ a_{hw})\right) \circ b_{hw}",
        symbols=("condinst_edu.dr1mask.dr1conv", "condinst_edu.dr1mask.DR1Conv2d"),
        naive=("condinst_edu.papers.naive_dr1mask.eq_2",),
        tests=("tests/test_dr1mask.py::test_position_sensitive_1x1",),
        status="equal",
    ),
    Item(
        id="dr1mask:eq-3",
        title="DR1Conv with any kernel",
        section="3.1",
        formula=(
            r"y_{hw} = \sum_j \sum_k \big(W[j, k] (X[h - j, w - k] \circ A[h - j, w - k])"
            r" \circ B[h - j, w - k]\big)"
        ),
        symbols=("condinst_edu.papers.naive_dr1mask.eq_3",),
        naive=("condinst_edu.papers.naive_dr1mask.eq_3",),
        tests=("tests/test_dr1mask.py::test_equation_3_as_printed",),
        status="we differ",
    ),
    Item(
        id="dr1mask:eq-4",
        title="DR1Conv over the whole map, in parallel",
        section="3.1",
        formula=r"Y = \mathrm{DR1Conv}_{A,B}(X) = \mathrm{Conv}(X \circ A) \circ B",
        symbols=("condinst_edu.dr1mask.dr1conv", "condinst_edu.dr1mask.DR1Conv2d"),
        naive=("condinst_edu.papers.naive_dr1mask.eq_4",),
        tests=("tests/test_dr1mask.py::test_parallel_form",),
        status="equal",
    ),
    Item(
        id="dr1mask:eq-5",
        title="Top layer: context features and instance embeddings from a tower of FCOS",
        section="3.2.1",
        formula=r"\{C_l, E_l\} = \mathrm{Top}(\mathrm{Tower}(P_l)), \quad l = 3, \dots, 7",
        symbols=(
            "condinst_edu.dr1mask.ContextLayer",
            "condinst_edu.dr1mask.DR1Mask.factors",
        ),
        tests=(
            "tests/test_dr1mask.py::test_top_layer_is_one_convolution",
            "tests/test_dr1mask.py::test_context_positions",
        ),
        lacks={"naive": "a convolution on a tower: the test is that one with all outputs gives the same"},
    ),
    Item(
        id="dr1mask:eq-6",
        title="DR1Basis: from the coarsest level to the finest, a DR1Conv at each",
        section="3.2.2",
        formula=(
            r"F_l = \mathrm{DR1Conv}_{A_l,B_l}\left(\mathrm{Conv}_{3 \times 3}(P_l)"
            r" + \uparrow_2(F_{l+1})\right), \quad F_8 = 0"
        ),
        symbols=("condinst_edu.dr1mask.DR1Basis",),
        naive=("condinst_edu.papers.naive_dr1mask.eq_6",),
        tests=("tests/test_dr1mask.py::test_basis_is_equation_6",),
        status="equal",
    ),
    Item(
        id="dr1mask:eq-7",
        title="An instance's own 1x1 convolution takes its crop of the bases from D channels to K",
        section="3.2.3",
        formula=r"R'^{(i)} = t^{(i)} * R^{(i)}",
        symbols=(
            "condinst_edu.dr1mask.FactoredAttention.project",
            "condinst_edu.dr1mask.FactoredAttention",
        ),
        naive=("condinst_edu.papers.naive_dr1mask.eq_7",),
        tests=("tests/test_dr1mask.py::test_projection_and_factored_maps",),
        status="equal",
    ),
    Item(
        id="dr1mask:eq-8",
        title="Factored attention: shared factors, an instance's own diagonal",
        section="3.2.3",
        formula=r"Q_k^{(i)} = U_k^\top \Sigma_k^{(i)} V_k",
        symbols=(
            "condinst_edu.dr1mask.FactoredAttention.maps",
            "condinst_edu.dr1mask.FactoredAttention.components",
        ),
        naive=("condinst_edu.papers.naive_dr1mask.eq_8",),
        tests=("tests/test_dr1mask.py::test_projection_and_factored_maps", "tests/test_dr1mask.py::test_components"),
        status="equal",
    ),
    Item(
        id="dr1mask:eq-9",
        title="Dynamic weights of the panoptic layer: mean embeddings, one per instance",
        section="3.3",
        formula=(
            r"W^{thing} = [\bar e_1, \bar e_2, \dots, \bar e_{C_{thing}}],"
            r" \quad \bar e_c = \frac{1}{N_c} \sum_n e_n"
        ),
        symbols=(
            "condinst_edu.layers.unified.mean_embeddings",
            "condinst_edu.dr1mask.DR1Mask.panoptic_loss",
        ),
        naive=("condinst_edu.papers.naive_dr1mask.eq_9",),
        tests=("tests/test_dr1mask.py::test_mean_embeddings", "tests/test_dr1mask.py::test_panoptic_loss_by_hand"),
        status="equal",
    ),
    Item(
        id="dr1mask:panoptic-layer",
        title="Panoptic logits: one matrix product with static and dynamic weights",
        section="3.3",
        formula=r"Y_{pano} = W_{pano}^\top F, \quad W_{pano} = [W_{stuff}, W_{thing}]",
        symbols=(
            "condinst_edu.layers.unified.PanopticLayer",
            "condinst_edu.dr1mask.DR1Mask.panoptic_logits",
            "condinst_edu.panoptic_models.UnifiedPanopticModel",
        ),
        naive=("condinst_edu.papers.naive_dr1mask.panoptic_logits",),
        tests=("tests/test_dr1mask.py::test_panoptic_layer",),
        status="equal",
    ),
    Item(
        id="dr1mask:aligned-upsampling",
        title="Input sizes divisible by 4 only; upsampled features are cropped on the right and at the bottom",
        section="3.3",
        symbols=(
            "condinst_edu.layers.upsample.upsample_to",
            "condinst_edu.dr1mask.DR1Basis.upsample",
        ),
        naive=("condinst_edu.papers.naive_dr1mask.upsample",),
        tests=(
            "tests/test_dr1mask.py::test_upsampling",
            "tests/test_dr1mask.py::test_upsampling_undoes_strided_convolutions",
        ),
        status="equal",
    ),
    Item(
        id="dr1mask:table-1",
        title="The factors A and B",
        section="4.2",
        symbols=(
            "condinst_edu.dr1mask.DR1Conv2d",
            "condinst_edu.dr1mask.ContextLayer",
        ),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
    ),
    Item(
        id="dr1mask:table-2",
        title="The factors A and B, panoptic",
        section="4.2",
        symbols=("condinst_edu.dr1mask.DR1Conv2d", "condinst_edu.recipes.dr1mask.dr1mask_row"),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
        lacks={"lesson": "lesson 6 shows A and B in instance segmentation, table 1"},
    ),
    Item(
        id="dr1mask:table-3",
        title="Where the context is computed",
        section="4.2",
        symbols=("condinst_edu.dr1mask.DR1Mask.factors",),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
    ),
    Item(
        id="dr1mask:table-4",
        title="Vector, full and factored attention",
        section="4.2",
        symbols=(
            "condinst_edu.dr1mask.VectorAttention",
            "condinst_edu.dr1mask.FullAttention",
            "condinst_edu.dr1mask.FactoredAttention",
        ),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
    ),
    Item(
        id="dr1mask:table-5",
        title="Padding of the input",
        section="4.2",
        symbols=("condinst_edu.layers.upsample.upsample_to",),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
    ),
    Item(
        id="dr1mask:table-6",
        title="Width of DR1Basis",
        section="4.2",
        symbols=("condinst_edu.dr1mask.DR1Basis",),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
        lacks={"lesson": "lessons have one width; the rows are recipes"},
    ),
    Item(
        id="dr1mask:table-7",
        title="Vector and factored attention, panoptic",
        section="4.2",
        symbols=("condinst_edu.dr1mask.DR1Mask.panoptic_logits",),
        tests=(
            "tests/test_dr1mask.py::test_recipes_and_rows",
            "tests/test_reproduce.py::test_every_row_of_a_miniature_builds",
        ),
        status="miniature",
        lacks={"lesson": "lesson 6 shows both kinds of attention in instance segmentation, table 4"},
    ),
    Item(
        id="dr1mask:table-8",
        title="Instance segmentation on COCO",
        section="4.3",
        symbols=(
            "condinst_edu.recipes.dr1mask.coco_dr1mask_r50_3x",
            "condinst_edu.recipes.dr1mask.coco_dr1mask_r101_3x",
            "condinst_edu.recipes.dr1mask.coco_dr1mask_r101_dcn_3x",
        ),
        tests=("tests/test_dr1mask.py::test_full_size_models",),
        status="recipe",
        lacks={"lesson": "a comparison at full scale, which no lesson runs"},
    ),
    Item(
        id="dr1mask:table-9",
        title="Panoptic segmentation on COCO",
        section="4.3",
        symbols=(
            "condinst_edu.recipes.dr1mask.coco_dr1mask_panoptic_r50_3x",
            "condinst_edu.recipes.dr1mask.coco_dr1mask_panoptic_r101_3x",
            "condinst_edu.recipes.dr1mask.coco_dr1mask_panoptic_r101_dcn_3x",
        ),
        tests=("tests/test_dr1mask.py::test_full_size_models",),
        status="recipe",
    ),
)

"""Features raised in images: the images are the closed form's, and the measures those of images made by hand."""

import pytest
import torch
from linear import Judge, linear, pictures

from lit_robust.analysis.ascent import Settings
from lit_robust.analysis.inversion import Work
from lit_robust.analysis.visualisation import (
    Visualisations,
    drawn_units,
    exciting,
    manipulate,
    manipulation_measures,
    visualisation_measures,
    visualise,
)
from lit_robust.core.errors import UserError


def test_units_from_starts():
    represent, rows = linear()
    starts, units = pictures(3, 0), torch.tensor([4, 1])
    made = visualise(represent, units, starts, Settings(step_size=0.01, steps=5), Work(batch=4))
    expected = starts[None] + 0.05 * rows[units].view(2, 1, 3, 4, 4)  # Rows have the length 1.
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.after - made.before, torch.full((2, 3), 0.05), rtol=0, atol=1e-5)
    assert made.steps.tolist() == [[5] * 3] * 2


def test_the_text_stops_where_the_feature_is_highest_and_the_code_where_it_is_1():
    represent, _ = linear()
    starts, units = pictures(3, 0, spread=1.0), torch.tensor([0, 5])
    settings = Settings(step_size=0.02, steps=200)
    text, code = (manipulate(represent, units, starts, settings, rule) for rule in ("text", "code"))
    assert text.exceeds.all()
    vectors = represent(text.images.flatten(0, 1)).detach().view(2, 3, -1)
    others = vectors.scatter(2, units.view(2, 1, 1).expand(2, 3, 1), float("-inf")).amax(2)
    lead = vectors.gather(2, units.view(2, 1, 1).expand(2, 3, 1))[..., 0] - others
    moved = text.steps > 0
    assert moved.any()
    assert ((lead > 0) & (lead < 0.05))[moved].all()  # At the first step behind the point where it leads.
    assert ((code.after >= 1) & (code.after < 1.03)).all()
    found = {one.measure: one.estimate.value for one in manipulation_measures(text)}
    assert found["feature_is_highest"] == 1
    assert found["steps_taken"] == pytest.approx(float(text.steps.double().mean()))
    distance = (text.images - text.starts).flatten(2).norm(dim=2).mean()
    assert found["distance_moved"] == pytest.approx(float(distance))


def test_images_that_excite_a_unit_most():
    represent, rows = linear()
    images = 0.5 + torch.tensor([0.1, 0.3, -0.2, 0.3]).view(4, 1, 1, 1) * rows[2].view(3, 4, 4)
    assert exciting(represent, images, torch.tensor([2]), 3, 2).tolist() == [[1, 3, 0]]
    with pytest.raises(UserError, match="give 1 to 4"):
        exciting(represent, images, torch.tensor([2]), 5, 2)


def test_drawn_units_are_alive():
    vectors = torch.zeros(3, 10)
    vectors[1, [2, 5, 7]] = 1
    assert drawn_units(vectors, 3, 0).tolist() == [2, 5, 7]
    assert len(drawn_units(vectors, 2, 0)) == 2
    assert any(not torch.equal(drawn_units(vectors, 2, 0), drawn_units(vectors, 2, seed)) for seed in range(1, 9))
    with pytest.raises(UserError, match="3 are above 0"):
        drawn_units(vectors, 4, 0)


def test_measures_of_visualisations_made_by_hand():
    shades = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]).view(2, 4, 1, 1, 1)
    zero = torch.zeros(2, 4)
    made = Visualisations(
        torch.tensor([0, 1]), torch.zeros(4, 3, 4, 4), shades.expand(2, 4, 3, 4, 4), zero, zero + 2, zero > 0, zero
    )
    labels = torch.tensor([[2, 2, 1], [1, 1, 0]])
    found = {one.measure: one.estimate.value for one in visualisation_measures(made, Judge(3), labels, 3)}
    assert found == {"answer_entropy": 0.5, "agreement": 0.75, "activation_gain": 2.0}


def test_a_unit_that_is_not_there():
    represent, _ = linear()
    with pytest.raises(UserError, match="from 0 to 5"):
        visualise(represent, torch.tensor([6]), pictures(1, 0), Settings(steps=1))

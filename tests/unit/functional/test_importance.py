import math

import pytest
import torch

from parl_cli.functional.importance import effective_share, ratio_metrics


def log(*ratios):
    return torch.tensor(ratios).log()


def test_equal_ratios_leave_every_sample():
    assert float(effective_share(log(3.0, 3.0, 3.0, 3.0))) == pytest.approx(1.0)


def test_effective_share_by_hand():
    assert float(effective_share(log(1.0, 3.0))) == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))


def test_one_sample_that_outweighs_all_others_is_one_sample():
    assert float(effective_share(torch.tensor([0.0, 0.0, 200.0, 0.0]))) == pytest.approx(1 / 4)


def test_masked_ratios_do_not_count():
    log_ratio, mask = log(1.0, 3.0, 1000.0), torch.tensor([True, True, False])
    assert torch.equal(effective_share(log_ratio, mask), effective_share(log_ratio[:2]))
    assert ratio_metrics(log_ratio, 1.0, mask) == ratio_metrics(log_ratio[:2], 1.0, None)


def test_ratio_metrics_by_hand():
    found = ratio_metrics(log(0.5, 1.5, 3.0, 1.0), 2.0, None)
    assert found["vtrace/rho_mean"] == pytest.approx((0.5 + 1.5 + 2.0 + 1.0) / 4)
    assert found["vtrace/clipped_share"] == pytest.approx(1.0 / 6.0)
    assert found["policy/ess"] == pytest.approx(6.0**2 / (4 * (0.25 + 2.25 + 9.0 + 1.0)))


def test_equal_policies_have_no_ratio_to_clip():
    found = ratio_metrics(torch.zeros(4, 2), 1.0, None)
    assert found == {"vtrace/rho_mean": 1.0, "vtrace/clipped_share": 0.0, "policy/ess": pytest.approx(1.0)}
    assert math.isnan(float(effective_share(torch.zeros(2), torch.tensor([False, False]))))

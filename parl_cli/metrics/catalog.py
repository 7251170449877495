"""Every metric that a run can log: its name, its unit, and what it says in one line.

The one place that knows. The table in the documents, the texts TensorBoard shows, and the test that no room logs an
undocumented name are all made from `CATALOG`. A name may hold a `<placeholder>` for one path-free word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from parl_cli.metrics.per_policy import PREFIX


@dataclass(frozen=True)
class Metric:
    """One metric: `name` as it is logged (or a pattern), its `unit`, and one line that explains it."""

    name: str
    unit: str
    doc: str


CATALOG: tuple[Metric, ...] = (
    Metric("env_steps", "env steps", "env transitions since the start: not frames, not agents; dropped ones included"),
    Metric("update", "updates", "learner updates since the start, one per batch of rollouts"),
    Metric("time_s", "s", "wall time since the start; a resumed run continues its clock"),
    Metric("steps_per_s", "env steps/s", "training speed since the previous row"),
    Metric("episode/return_mean", "reward", "undiscounted raw return, mean of the last 100 training episodes"),
    Metric("episode/return_std", "reward", "standard deviation of those returns (population)"),
    Metric("episode/return_min", "reward", "lowest of those returns"),
    Metric("episode/return_max", "reward", "highest of those returns"),
    Metric("episode/length_mean", "env steps", "length of those episodes, mean"),
    Metric("episode/count", "episodes", "training episodes finished since the start"),
    Metric("loss/policy", "-", "the policy's loss, mean over the update's minibatches"),
    Metric(
        "loss/value", "reward²", "the critic's loss before its coefficient (of scaled rewards, where they are scaled)"
    ),
    Metric("policy/entropy", "nats", "entropy of the action distribution, before `algo/entropy_coef`"),
    Metric("policy/approx_kl", "nats", "estimated KL divergence from the acting to the updated policy"),
    Metric("policy/kl", "nats", "exact KL divergence from the acting to the updated policy, mean over samples"),
    Metric("policy/clip_fraction", "share", "samples whose probability ratio lies outside the clip range"),
    Metric("policy/trigger_fraction", "share", "samples that had gone too far: flat or rolled back (Truly PPO family)"),
    Metric(
        "policy/ess", "share", "effective samples (Σ r)² / (n Σ r²), r being current to acting policy; 1 without lag"
    ),
    Metric("policy/std_mean", "action", "standard deviation of a Gaussian policy, mean over action dimensions"),
    Metric("vtrace/rho_mean", "-", "V-trace's clipped ratio of current to acting policy, mean; 1 without lag"),
    Metric("vtrace/clipped_share", "share", "how much of the ratios' sum V-trace clipped off; 0 without lag"),
    Metric(
        "value/explained_variance", "-", "share of the returns' variance the critic predicts: 1 is perfect, 0 useless"
    ),
    Metric("optim/learning_rate", "-", "learning rate of the policy in this update"),
    Metric("optim/critic_learning_rate", "-", "learning rate of the critic in this update"),
    Metric("optim/grad_norm", "-", "norm of the gradient before clipping, mean over minibatches"),
    Metric("optim/epochs", "epochs", "passes over the batch that were really run, before a target-KL stop"),
    Metric("algo/clip_range", "-", "PPO's ε in this update"),
    Metric("algo/delta", "nats", "size of the trust region in this update (Truly PPO family)"),
    Metric("algo/entropy_coef", "-", "weight of the entropy bonus in this update"),
    Metric("algo/kl_penalty_coef", "-", "weight of the KL penalty in this update (KL-penalty variant)"),
    Metric("rollout/policy_lag_mean", "updates", "how many updates old the acting weights were, mean over steps"),
    Metric("rollout/policy_lag_max", "updates", "the same, for the oldest step"),
    Metric(
        "rollout/policy_lag_<n>_share", "share", "env steps that weights of n updates ago acted; in runs with a lag"
    ),
    Metric("rollout/dropped_steps", "env steps", "env steps thrown away as too old or lost, since the start"),
    Metric("rollout/masked_share", "share", "slots of the batch that hold no real transition"),
    Metric("normalizer/reward_std", "reward", "the running scale by which rewards are divided"),
    Metric(
        "time/env_share", "share", "time since the previous row that the learner's thread spent stepping environments"
    ),
    Metric("time/act_share", "share", "… choosing actions"),
    Metric("time/learn_share", "share", "… updating the weights"),
    Metric("time/wait_share", "share", "… waiting for actors that act on their own"),
    Metric("time/other_share", "share", "… on all else, so that the shares sum to 1"),
    Metric("time/<part>_share", "share", "… on another part, where an algorithm or plug-in measures one"),
    Metric(
        "actors/env_share", "share", "time of actors that act on their own (threads, processes) spent stepping envs"
    ),
    Metric("actors/act_share", "share", "… choosing actions, mean over actors"),
    Metric("actors/wait_share", "share", "… waiting for the learner: for a free slot, or for newer weights"),
    Metric("actors/other_share", "share", "… on all else, so that the shares sum to 1"),
    Metric("actors/queue_depth", "rollouts", "rollouts ready when the learner asked, mean; 0: it waits for actors"),
    Metric("actors/restarts", "actors", "actors that failed and were replaced, since the process began"),
    Metric("memory/rss_mb", "MB", "resident memory of the process, and on Linux of its workers"),
    Metric("eval/return_mean", "reward", "undiscounted raw return of this evaluation, mean over its episodes"),
    Metric("eval/return_std", "reward", "standard deviation of those returns (sample)"),
    Metric("eval/return_ci95", "reward", "half width of the mean's 95 % confidence interval"),
    Metric("eval/length_mean", "env steps", "length of those episodes, mean"),
    Metric("eval/episodes", "episodes", "episodes in this evaluation"),
    Metric(
        "policy_<id>/…",
        "its own",
        "what stands behind the slash, of one policy in a run with several. Without it, `env_steps`, `update` and "
        "`steps_per_s` are those of one policy (the one with fewest env steps), `eval/…` is over all episodes, other "
        "counts since the start are sums, `_min` and `_max` extremes, and all else is the mean over policies",
    ),
)


@cache
def lookup(name: str) -> Metric | None:
    """The catalogue's entry for a logged name, by itself or by the pattern it fits; None if it has none.

    One policy's metric has the entry of the metric.
    """
    prefix = PREFIX.match(name)
    if prefix is not None:
        name = name[prefix.end() :]
    for metric in CATALOG:
        if _pattern(metric.name).fullmatch(name):
            return metric
    return None


def markdown_table() -> str:
    """The catalogue as a Markdown table, for the documents (a test holds the two equal)."""
    rows = ["| metric | unit | what it says |", "| --- | --- | --- |"]
    rows += [f"| `{metric.name}` | {metric.unit} | {metric.doc} |" for metric in CATALOG]
    return "\n".join(rows) + "\n"


def _pattern(name: str) -> re.Pattern[str]:
    literal = re.split(r"<\w+>", name)
    return re.compile("[a-z0-9_]+".join(re.escape(part) for part in literal))

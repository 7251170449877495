"""Plans carried out in a plain Python loop: what an `EnvPlans` asks for, done here and now."""

from __future__ import annotations

from parl_cli.vectorizers.plans import ENV_FAULTS, CallError, Plan, T


def carry_out(plan: Plan[T]) -> T:
    """Make the calls that a plan asks for, here and in order; what it returns."""
    try:
        calls = next(plan)
        while True:
            _, functions, arguments = calls
            left = iter(functions)
            try:
                # the hot loop: it does nothing but step
                results = [function(argument) for function, argument in zip(left, arguments, strict=True)]
            except ENV_FAULTS as error:
                index = len(functions) - len(list(left)) - 1  # the one that was taken last
                calls = plan.throw(CallError(index, error))
            else:
                calls = plan.send(results)
    except StopIteration as end:
        return end.value

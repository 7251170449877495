"""What a job costs on this machine, and which vectorizer is fastest for it: `parl bench`.

The parts are measured alone and then together:

- *env only*: a vectorizer stepped with random actions through the runner's face, nothing else going on;
- *act only*: what the actor adds to a step, its noise and its bookkeeping included; the envs' own time is left out;
- *learn only*: an update of the algorithm and what the learner does around it, again and again on one rollout;
- *end to end*: rollouts and updates as in training.

What is compared is measured in turns, a round after the other, so that a machine whose speed drifts favours nobody.
"""

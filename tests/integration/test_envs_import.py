import subprocess
import sys

import pytest

PROBE = """
import sys
from parl_cli.config import EnvConfig
from parl_cli.envs.factory import EnvFactory, env_spec
config = EnvConfig(id="CartPole-v1", wrappers=["flatten_obs", "reward_clip"])
env_spec(config)
env = EnvFactory(config)()
env.reset(seed=0)
env.step(0)
print(sorted(m for m in sys.modules if m.split(".")[0] in ("torch", "hydra", "matplotlib", "pygame")))
"""


@pytest.mark.parametrize(
    "code", ["import parl_cli.envs.gymnasium_adapter, sys; print([m for m in sys.modules if m == 'torch'])", PROBE]
)
def test_making_and_stepping_envs_imports_nothing_heavy(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_box2d_can_be_imported_where_warnings_are_errors():
    pytest.importorskip("Box2D")
    code = "import parl_cli.envs.factory as f, parl_cli.config as c\n"
    code += "print(f.env_spec(c.EnvConfig(id='LunarLander-v3')).id)"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "LunarLander-v3"), result.stderr

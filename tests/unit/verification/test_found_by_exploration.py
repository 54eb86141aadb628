"""What the exploration found wrong with the protocol, each as the few steps that it takes."""

from wattline.grants.node import Node
from wattline.grants.node_state import Found


def test_a_clamp_lifted_between_two_readings_does_not_count_as_standing() -> None:
    """Clamped to 100 W, free for a moment at 300 W, written to 100 W: the draw lags at 300 W."""
    node = Node({0: Found(300.0, 100.0, 300.0, requested_w=300.0)}, incarnation=1)
    node.on_enforced(0, 100.0, 1.0, requested_w=300.0)
    node.begin_write(0, 100.0, 50.0)
    node.on_enforced(0, 100.0, 60.0, requested_w=100.0)
    assert node.report(0, 60.0).standing_s == 0.0

"""Counts an actor's deaths: the loss of a node is not one, however many nodes are lost."""

import pytest

from routelmt_batch.engines.roll import RESTARTS, Place, Roll

pytestmark = pytest.mark.engine


def test_lost_nodes_are_no_deaths_and_deaths_on_living_nodes_are(ray_session):
    import ray

    here, deaths = ray.get_runtime_context().get_node_id(), Roll()
    lost = [f"lost-{number}" for number in range(3 * RESTARTS)]  # Ray does not list them as alive
    assert {deaths.started("one", Place(node)) for node in [*lost, here]} == {0}
    assert [deaths.started("one", Place(node)) for node in (here, here, "lost", here)] == [1, 2, 3, 3]
    assert deaths.started("another", Place(here)) == 0

"""What is told by numbers of free GPUs is what a layout would say."""

from hypothesis import given
from hypothesis import strategies as st
from placement_builders import cluster_of

from placement import Infeasible, Shape, place
from placement.layout import Place, free_gpus, place_all
from placement.room import have_room, islands_of, without

SHAPES = [Shape.parse(text) for text in ("tp1", "tp2", "tp3", "tp4", "pp2", "tp2pp2", "tp3pp2", "tp2ep4dp2", "dp3")]

islands = st.lists(
    st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 3), st.integers(1, 3))), min_size=1, max_size=4
)


@given(islands, st.lists(st.sampled_from(SHAPES), max_size=5), st.data())
def test_room_by_numbers_is_room_on_slots(
    sizes: list[int | tuple[int, ...]], shapes: list[Shape], data: st.DataObject
) -> None:
    cluster = cluster_of(*sizes)
    places = [(node.name, slot) for node in cluster.nodes for slot in range(node.gpus)]
    taken: frozenset[Place] = data.draw(st.frozensets(st.sampled_from(places)), label="taken")
    room, layouts = free_gpus(cluster, taken), []
    has_room, together = have_room(shapes, room), place_all(shapes, cluster, taken)
    for shape in shapes:
        layout, gpus = place(shape, cluster, taken), islands_of(shape, room)
        if isinstance(layout, Infeasible):
            assert (has_room, together, gpus) == (False, layout, None)
            return
        assert gpus is not None
        layouts, taken, room = [*layouts, layout], taken | layout.places, without(room, gpus)
        assert room == free_gpus(cluster, taken)
    assert (has_room, together) == (True, tuple(layouts))

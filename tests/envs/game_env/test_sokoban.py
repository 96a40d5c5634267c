import random
from concurrent.futures import ThreadPoolExecutor

import pytest

import gem
from gem.envs.game_env.sokoban import SokobanEnv
from gem.envs.game_env.sokoban.utils import draw_room
from gem.testing.solvers import solve

VARIANTS = ("-easy", "-hard", "-random")
ALL = [f"game:Sokoban-{version}{variant}" for version in ("v0", "v1") for variant in VARIANTS]
SIZES = [((6, 6), 2, 20), ((8, 8), 4, 50), ((8, 8), 5, 50)]
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def start(picture, **kwargs):
    """A game in the room that is drawn, its rows with blanks between them."""
    rows = picture.split()
    env = SokobanEnv(**{"max_turns": 20, **kwargs})
    env.reset(seed=1)
    env.cols = len(rows[0])
    env.board = list("".join(rows))
    env.player = next(cell for cell, symbol in enumerate(env.board) if symbol in "PS")
    env.num_boxes = sum(symbol in "X√" for symbol in env.board)
    return env


def move(env, answer):
    return env.step(f"\\boxed{{{answer}}}")


def room(text):
    """The room that ends an observation."""
    return [line.split() for line in text.splitlines()[1:]]


def picture(text):
    return " ".join("".join(row) for row in room(text))


def cells(rows, symbols):
    return {(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol in symbols}


def replay(rows, moves):
    """Play by rules of its own; return the boxes that are not on targets after each move."""
    walls, targets, boxes = cells(rows, "#"), cells(rows, "O√S"), cells(rows, "X√")
    (player,) = cells(rows, "PS")
    left = []
    for name in moves:
        r, c = STEPS[name]
        new, beyond = (player[0] + r, player[1] + c), (player[0] + 2 * r, player[1] + 2 * c)
        assert new not in walls
        if new in boxes:
            assert beyond not in walls | boxes
            boxes = boxes - {new} | {beyond}
        player = new
        left.append(len(boxes - targets))
    return left


@pytest.mark.parametrize("env_id", ALL)
def test_solving_from_the_text_alone_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(60):
        result = solve(env, seed)
        assert (result.return_, result.success) == (1.0, True)
        assert result.turns <= env.max_turns


@pytest.mark.parametrize(("dim", "boxes", "turns"), SIZES)
def test_moves_of_the_construction_solve_the_room_in_time(dim, boxes, turns):
    rng = random.Random(0)
    seen = 0
    while seen < 1000:
        drawn = draw_room(rng, *dim, boxes, turns)
        if drawn is None:
            continue
        seen += 1
        rows = [drawn.board[i : i + dim[1]] for i in range(0, len(drawn.board), dim[1])]
        assert boxes <= len(drawn.solution) <= turns
        assert replay(rows, drawn.solution)[-1] == 0


@pytest.mark.parametrize("env_id", ALL[:3])
def test_rooms_are_walled_connected_and_hold_all_with_no_box_at_home(env_id):
    env = gem.make(env_id)
    for seed in range(300):
        rows = room(env.reset(seed=seed)[0])
        assert set("".join(rows[0] + rows[-1]) + "".join(row[0] + row[-1] for row in rows)) == {"#"}
        assert len(cells(rows, "X")) == len(cells(rows, "OS")) == env.num_boxes
        assert len(cells(rows, "PS")) == 1
        assert not cells(rows, "√")
        floor = cells(rows, "_OXPS")
        reached = todo = {next(iter(floor))}
        while todo:
            todo = {(r + i, c + j) for r, c in todo for i, j in STEPS.values()} & floor - reached
            reached = reached | todo
        assert reached == floor


def test_rooms_differ_and_most_have_inner_walls():
    rooms = [picture(gem.make("game:Sokoban-v0-hard").reset(seed=seed)[0]) for seed in range(100)]
    assert len(set(rooms)) == 100
    assert sum(text.count("#") > 28 for text in rooms) > 80


def test_rooms_drawn_in_threads_are_those_drawn_alone():
    def draw(seed):
        return gem.make("game:Sokoban-v0-hard").reset(seed=seed)[0]

    alone = [draw(seed) for seed in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(200))) == alone


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Sokoban-v0-random")
    sizes = set()
    for seed in range(40):
        rows = room(env.reset(seed=seed)[0])
        sizes.add(((len(rows), len(rows[0])), env.num_boxes, env.max_turns))
    assert sizes == {((6, 6), 2, 20), ((8, 8), 5, 50)}


@pytest.mark.parametrize(
    ("before", "answer", "after"),
    [
        ("##### #P__# ##### #XO_# #####", "right", "##### #_P_# ##### #XO_# #####"),
        ("###### #PX_O# ######", "right", "###### #_PXO# ######"),
        ("###### #OX_P# ######", "left", "###### #OXP_# ######"),
        ("##### #PXO# #XO_# #####", "right", "##### #_P√# #XO_# #####"),
        ("###### #P√_X# ######", "right", "###### #_SXX# ######"),
        ("###### #S√OX# ######", "right", "###### #OS√X# ######"),
        ("##### #PO_# #X__# #####", "right", "##### #_S_# #X__# #####"),
        ("##### #_S_# #X__# #####", "down", "##### #_O_# #XP_# #####"),
        ("### #_# #X# #P# #O# ###", "up", "### #X# #P# #_# #O# ###"),
        ("### #P# #X# #_# #O# ###", "down", "### #_# #P# #X# #O# ###"),
    ],
)
def test_player_walks_pushes_and_stays_visible_on_targets(before, answer, after):
    text, reward, terminated, truncated, info = move(start(before), answer)
    assert picture(text) == after
    assert (reward, terminated, truncated, info["move"]) == (0, False, False, "legal")


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        ("##### #PXO# #####", "up"),
        ("##### #PXO# #####", "left"),
        ("##### #OPX# #####", "right"),
        ("###### #PXXO# ######", "right"),
        ("###### #PX√_# ######", "right"),
        ("##### #XOP# ##X## ##O## #####", "down"),
    ],
    ids=["wall", "wall beside", "box at a wall", "two boxes", "box before one at home", "wall below"],
)
def test_move_into_a_wall_or_a_stuck_box_is_illegal_and_moves_nothing(before, answer):
    env = start(before)
    text, reward, terminated, truncated, info = move(env, answer)
    assert (reward, terminated, truncated, info["move"]) == (0, False, False, "illegal")
    assert picture(text) == before


def test_random_actions_are_the_legal_ones_also_at_the_outer_walls():
    for before, legal in (
        ("##### #OPX# #####", {"left"}),
        ("##### #_XP# #O__# #####", {"left", "down"}),
        ("### #P# #X# #O# ###", {"down"}),
        ("#### #O_# #XP# ####", {"up"}),
    ):
        env = start(before)
        assert {env.sample_random_action() for _ in range(60)} == {f"\\boxed{{{answer}}}" for answer in legal}


@pytest.mark.parametrize("answer", ["u", "north", "up up", "0"])
def test_what_is_no_direction_is_a_format_error(answer):
    assert move(start("##### #PXO# #####"), answer)[1:3] == (-0.1, True)


@pytest.mark.parametrize("shaped", [True, False])
def test_solution_at_the_last_turn_wins(shaped):
    env = start("##### #PXO# #####", max_turns=1, shaped=shaped, dim_room=None)
    env.max_turns = 1
    text, reward, terminated, truncated, info = move(env, " Right ")
    assert (reward, terminated, truncated, info["success"]) == (1, True, False, True)
    assert picture(text) == "##### #_P√# #####"


@pytest.mark.parametrize("answer", ["right", "up"])
@pytest.mark.parametrize(("shaped", "share"), [(True, 0.5), (False, 0)])
def test_last_turn_pays_the_share_of_boxes_on_targets_in_v0_alone(answer, shaped, share):
    env = start("###### #P__√# #_XO_# #____# ######", shaped=shaped)
    env.max_turns = 1
    assert move(env, answer)[1:4] == (share, False, True)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dim_room": (4, 4), "num_boxes": 4},
        {"dim_room": (3, 3), "num_boxes": 1},
        {"dim_room": (2, 9), "num_boxes": 1},
        {"dim_room": (8, 8), "num_boxes": 4, "max_turns": 3},
    ],
)
def test_sizes_without_a_room_are_refused(kwargs):
    with pytest.raises(ValueError, match="found no room"):
        SokobanEnv(**kwargs)


def test_room_need_not_be_square_and_may_come_as_a_list():
    rows = room(SokobanEnv(dim_room=[5, 9], num_boxes=2).reset(seed=1)[0])
    assert (len(rows), len(rows[0])) == (5, 9)

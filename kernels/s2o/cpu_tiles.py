"""
What neighbouring rows of S2O decide together on CPUs, for processors with AMX, which multiplies tiles of 16 rows.

A row that visits granules by itself multiplies a vector with a matrix, where AMX is of no help. Here `TILE` rows of a
head visit the granules whose promise, as root mean square over these rows, reaches the threshold. Neighbours are
nearly as alike as rows that were ordered by likeness, at no cost. A granule's 32 lanes are what one instruction sums
over, and keys and values lie as it takes them (`cpu.py` packs them so): visits are read in place, nothing is gathered.

Weights are relative to a peak that is known before, so that sums stay in AMX's registers along a portion of the list.
Without AMX the same is done in loops, slowly, for tests.
"""

import functools
import math

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import SUMS, exp, jit
from ..vectors import LANES, Vectors
from .cpu_rows import MOST_EXP, MOST_MASS, limit_of
from .reference import MAX_LIFT, TARGET_BINS

TILE = 32  # rows that decide together: two AMX tiles, which share each tile of keys
UNIT = 2 * LANES  # keys that are attended at a time: a granule, or the odd keys of two blocks
LOG2_E = 1 / math.log(2)
PORTION = 16  # units whose weights stay in the first-level cache between the two products


@functools.cache
def has_amx() -> bool:
    """Whether this processor multiplies tiles of bfloat16, and the system lets this process use them."""
    features = llvm.get_host_cpu_features()
    if not all(features.get(name) for name in ("amx-tile", "amx-bf16", "avx512bf16")):
        return False
    llvm.initialize_native_asmparser()  # instructions are named below
    return bool(torch.cpu._init_amx())


@functools.cache
def palette() -> np.ndarray:
    """AMX's configuration: eight tiles of 16 rows of 64 bytes."""
    configuration = np.zeros(64, np.uint8)
    configuration[0] = 1
    configuration[16:32:2] = 64  # bytes in a row, 16 bits each
    configuration[48:56] = 16
    return configuration


# ---------------------------------------------------------------- tiles of rows


@jit(SUMS)
def attend_tiles(
    scores,  # [R, at least G] dot products with means
    bounds,  # [R, at least G] and of squared queries with variances
    count,  # G
    scattered,  # granules that every row visits
    sinks,  # [R] a logit besides all keys, -inf where there is none
    numbers,
    compensate,
    queries,  # [R, D] bits of bfloat16
    near_keys,  # of the segment, in sequence
    near_values,
    first,  # near keys before the first row's own; then rows follow each other, head by head
    length,  # rows of a head
    keys,
    values,
    odd_at,  # where the vectors of odd keys begin
    block,  # granules in a block, and its odd keys
    configuration,  # `palette()`, or None where there is no AMX
    key_width,  # tuples whose lengths are constants of the compiled code
    weights,  # [R, at least G] out: what each mean value weighs
    acc,  # [R, Dv] out: sum of near, odd, and visited values
    shares,  # [3, R] out: total mass, missed share, granules visited
):
    """
    Attends the near and the odd keys, judges, attends what is to be visited, and writes the weights of all else.

    Weights are relative to the logit of a row's own key, or to a higher one where sums would overflow.
    """
    row_count, width = queries.shape
    odd_live = min(block, LANES)
    past_odd = count // block * ((block + LANES - 1) // LANES)
    # Two vectors at a time. Of an odd number the first goes with the one before it, whose lanes are dead.
    leading = np.full(past_odd % 2, odd_at - 1, np.int32)
    near = (np.arange(near_values.size // (LANES * acc.shape[1])) * (UNIT // LANES)).astype(np.int32)
    odd = (odd_at + past_odd % 2 + 2 * np.arange(past_odd // 2)).astype(np.int32)
    visits = np.empty(count, np.int32)
    rows, sums = np.zeros((TILE, width), np.uint16), np.empty((TILE, acc.shape[1]), np.float32)
    lanes, peak = np.empty((TILE, LANES), np.float32), np.empty(TILE, np.float32)
    seen, none = np.empty(TILE, np.int64), np.zeros(TILE, np.int64)
    attended, left = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    room = np.empty((TILE + 4, bounds.shape[1]), np.float32)
    buffers = (np.empty((2, TILE, UNIT), np.float32), np.empty((PORTION, TILE, UNIT), np.uint16))
    if configuration is not None:
        before = np.empty(64, np.uint8)
        keep_tiles(before)
        set_tiles(configuration)
    for begin in range(0, row_count, TILE):
        todo = min(TILE, row_count - begin)
        rows[:todo] = queries[begin : begin + todo]
        for r in range(TILE):
            row = min(begin + r, row_count - 1)
            seen[r] = first + row % length + 1
            peak[r] = max(_logit_of(rows[r], near_keys, seen[r] - 1) * numbers[0], sinks[row])
        again = True
        while again:
            sums[:], lanes[:] = 0, 0
            place = (rows, numbers[0], peak, sums, lanes, buffers, configuration, key_width)
            _attend(near[: -(-seen[:todo].max() // UNIT)], near_keys, near_values, seen, UNIT, LANES, *place)
            _attend(leading, keys, values, none, 0, -odd_live, *place)
            _attend(odd, keys, values, none + odd_live, 0, 0, *place)
            for r in range(todo):
                attended[r] = lanes[r].sum() + exp(sinks[begin + r] - peak[r])
            own = slice(begin, begin + todo)
            judged = (scores[own], bounds[own], count, scattered, peak, attended, numbers, compensate)
            num_visits = _judge(*judged, room, visits, left, weights[own])
            _attend(visits[:num_visits], keys, values, none + LANES, 0, 1, *place)
            again = False
            for r in range(todo):
                row = begin + r
                exact = lanes[r].sum() + exp(sinks[row] - peak[r])
                shares[0, row] = exact + left[r] if compensate else exact
                shares[1, row] = left[r] / (exact + left[r]) if left[r] < np.inf else np.float32(1)
                shares[2, row] = num_visits
                if shares[0, row] > MOST_MASS:
                    # Something lies so far above the row's own key that sums may overflow: anew, from higher up.
                    peak[r] += np.float32(60)
                    again = True
        acc[begin : begin + todo] = sums[:todo]
    if configuration is not None:
        set_tiles(before)


@jit(SUMS)
def _judge(scores, bounds, count, scattered, peak, attended, numbers, compensate, room, visits, left, weights):
    """
    Lists in `visits` the granules that a tile visits, whose rows have `attended` so much relative to `peak`; returns
    how many they are. Writes the `weights` of the others' means, and their sum to `left`.
    """
    mass, lift, change, share, kept = room[4:], room[0], room[1], room[2], room[3]
    held, top = np.empty(TARGET_BINS + 1, np.float32), np.empty(TILE, np.float32)
    change[:], share[:], kept[:] = 0, 0, 0
    part = np.float32(1) / np.float32(len(scores))
    for r in range(len(scores)):
        # A past may lie above the near keys by more than float32 holds: estimates are relative to the highest.
        highest = expect(scores[r], bounds[r], peak[r], numbers, mass[r], lift)
        top[r] = highest * np.float32(1 / LOG2_E)
        total = exp2_of(mass[r], highest) + attended[r] * exp(peak[r] - top[r])
        promise(mass[r], lift, np.float32(1) / total, part, change, share)
    change *= np.float32(1) / numbers[1]
    nearer = np.float32(1) - share[:count].sum()
    limit = limit_of(share[:count], change[:count], scattered, nearer, numbers, held)
    num_visits = 0
    for i in range(count):
        kept[i] = change[i] < limit  # not where it is NaN, for the sake of the others of the tile
        if kept[i] == 0:
            visits[num_visits] = i * (UNIT // LANES)
            num_visits += 1
    for r in range(len(scores)):
        factor = exp(min(top[r] - peak[r], MOST_EXP))
        entering = factor if compensate else np.float32(0)
        left[r] = leave(mass[r], kept, entering, weights[r]) * factor
        if left[r] > 0 and top[r] - peak[r] > MOST_EXP:
            left[r] = np.inf
    return num_visits


@jit(SUMS)
def _logit_of(row, keys, position):
    """Dot product of a row with the key at a `position` of packed `keys`."""
    pairs = row.size // 2
    at = position // LANES * pairs * LANES + position % LANES
    total = np.float32(0)
    for j in range(pairs):
        key = np.uint32(keys[at + j * LANES])
        total += _number(row[2 * j]) * _number(key) + _number(row[2 * j + 1]) * _number(key >> np.uint32(16))
    return total


@jit(SUMS)
def _attend(units, keys, values, seen, step, gap, rows, scale, peak, sums, lanes, buffers, configuration, key_width):
    """
    Adds the values of the `units`, told by their first vectors, to `sums`, and their weights, relative to `peak`, to
    `lanes`. Of a unit's first vector a row sees the first `seen` keys, `step` fewer from unit to unit, and of its
    second vector `gap` fewer.
    """
    scores, weights = buffers
    key_vector, value_vector = rows.shape[1] // 2 * LANES, sums.shape[1] * LANES // 2  # numbers, which are pairs
    for first in range(0, units.size, PORTION):
        portion = units[first : first + PORTION]
        for u in range(portion.size + 1):
            # The products of a unit are on their way while the one before it is weighed.
            if u < portion.size:
                at = np.int64(portion[u]) * key_vector
                if configuration is None:
                    _score_slowly(rows, keys[at : at + 2 * key_vector], scores[u % 2])
                else:
                    score_unit(rows, keys, at, scores[u % 2], key_width)
            if u > 0:
                before = step * (first + u - 1)
                for r in range(TILE):
                    live = seen[r] - before
                    if configuration is None:
                        _weigh_slowly(scores[(u - 1) % 2], r, scale, peak[r], live, live - gap, weights[u - 1], lanes)
                    else:
                        weigh(scores[(u - 1) % 2], r, scale, peak[r], live, live - gap, weights[u - 1], lanes)
        if configuration is None:
            for u in range(portion.size):
                at = np.int64(portion[u]) * value_vector
                _sum_slowly(weights[u], values[at : at + 2 * value_vector], sums)
        else:
            for column in range(0, sums.shape[1], UNIT):
                load_sums(sums, column)
                for u in range(portion.size):
                    sum_unit(weights[u], values, np.int64(portion[u]) * value_vector + column, sums)
                store_sums(sums, column)


# ---------------------------------------------------------------- in loops


@jit(SUMS)
def _score_slowly(rows, keys, scores):
    """`scores [TILE, UNIT]` of the two vectors of `keys`, in pairs of dimensions."""
    pairs = rows.shape[1] // 2
    scores[:] = 0
    for r in range(TILE):
        for v in range(UNIT // LANES):
            for j in range(pairs):
                even, odd = _number(rows[r, 2 * j]), _number(rows[r, 2 * j + 1])
                at = (v * pairs + j) * LANES
                for lane in range(LANES):
                    key = np.uint32(keys[at + lane])
                    scores[r, v * LANES + lane] += even * _number(key) + odd * _number(key >> np.uint32(16))


@jit(SUMS)
def _weigh_slowly(scores, r, scale, peak, live, more_live, weights, lanes):
    for i in range(UNIT):
        is_live = i < live if i < LANES else i - LANES < more_live
        logit = scores[r, i] * scale - peak
        weight = exp(MOST_EXP if logit > MOST_EXP else logit) if is_live else np.float32(0)
        lanes[r, i % LANES] += weight
        weights[r, i] = _bits(weight)


@jit(SUMS)
def _sum_slowly(weights, values, sums):
    width = sums.shape[1]
    for r in range(TILE):
        for j in range(UNIT // 2):
            even, odd = _number(weights[r, 2 * j]), _number(weights[r, 2 * j + 1])
            for c in range(width):
                pair = np.uint32(values[j * width + c])
                sums[r, c] += even * _number(pair) + odd * _number(pair >> np.uint32(16))


@jit(SUMS)
def _number(bits):
    """The float32 of the lowest 16 bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit(SUMS)
def _bits(x):
    """A float32 rounded to the bits of bfloat16."""
    bits = np.float32(x).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


# ---------------------------------------------------------------- a row's granules


class _Row:
    """Goes through arrays of one row, or of a tile, `LANES` granules at a time."""

    def __init__(self, context, builder, signature, arguments):
        self.write, self.builder, self.given = Vectors(builder), builder, arguments
        self.kinds = signature.args
        self.arrays = {
            at: context.make_array(kind)(context, builder, arguments[at])
            for at, kind in enumerate(signature.args)
            if isinstance(kind, types.Array)
        }

    def splat(self, argument: int):
        return self.write.splat(self.given[argument])

    def element(self, argument: int, index: int):
        """One number of an array, in all lanes."""
        return self.write.splat(self.builder.load(self.place(argument, ir.IntType(64)(index))))

    def steps(self, argument: int):
        """Places 0, `LANES`, ... of a one-dimensional array."""
        size, i64 = self.builder.extract_value(self.arrays[argument].shape, 0), ir.IntType(64)
        return cgutils.for_range_slice(self.builder, i64(0), size, i64(LANES), i64)

    def place(self, argument: int, at):
        return self.builder.gep(self.arrays[argument].data, [at])

    def load(self, argument: int, at):
        return self.write.load_number(self.place(argument, at), self.kinds[argument].dtype)

    def store(self, vector, argument: int, at) -> None:
        self.write.store(vector, self.place(argument, at))


@intrinsic
def expect(typing, scores, bounds, peak, numbers, lse, lift):
    """
    Writes log2 of the mass that a row expects of each granule, and the lift in it, in base 2 as well; see
    `reference.judge`. Returns the highest of the former and of log2 of `peak`, which is a logarithm.
    """
    args = (scores, bounds, peak, numbers, lse, lift)

    def codegen(context, builder, signature, given):
        row = _Row(context, builder, signature, given)
        write = row.write
        to_log2 = write.constant(write.float, LOG2_E)
        scale, log_size, critical = (row.element(3, index) for index in (0, 4, 5))
        scale2, size2 = builder.fmul(scale, to_log2), builder.fmul(log_size, to_log2)
        most, half = write.constant(write.float, MAX_LIFT), write.constant(write.float, 0.5)
        highest = cgutils.alloca_once_value(builder, builder.fmul(row.splat(2), to_log2))
        with row.steps(4) as (at, _):
            spread = builder.fmul(write.square_root(row.load(1, at)), scale)
            uncritical = write.least(critical, spread)
            lifted = builder.fmul(uncritical, builder.fsub(spread, builder.fmul(uncritical, half)))
            lifted = builder.fmul(write.least(most, lifted), to_log2)
            mass = write.multiply_add(row.load(0, at), scale2, builder.fadd(lifted, size2))
            row.store(mass, 4, at)
            row.store(lifted, 5, at)
            builder.store(write.most(mass, builder.load(highest)), highest)
        return write.highest_lane(builder.load(highest))

    return types.float32(*args), codegen


@intrinsic
def exp2_of(typing, numbers, top):
    """2^(numbers - top) in place, and the sum."""

    def codegen(context, builder, signature, given):
        row = _Row(context, builder, signature, given)
        write, top = row.write, row.splat(1)
        total = cgutils.alloca_once_value(builder, write.constant(write.float, 0.0))
        with row.steps(0) as (at, _):
            mass = write.rough_exp2(builder.fsub(row.load(0, at), top))
            row.store(mass, 0, at)
            builder.store(builder.fadd(builder.load(total), mass), total)
        return write.total(builder.load(total))

    return types.float32(numbers, top), codegen


@intrinsic
def promise(typing, mass, lift, factor, part, change, share):
    """Adds `part` of a row's squared promises, times n, to `change`, and of `factor` times its masses to `share`."""
    args = (mass, lift, factor, part, change, share)

    def codegen(context, builder, signature, given):
        row = _Row(context, builder, signature, given)
        write, factor, part = row.write, row.splat(2), row.splat(3)
        one, none = write.constant(write.float, 1.0), write.constant(write.float, 0.0)
        most = write.constant(write.float, MAX_LIFT * LOG2_E)
        with row.steps(0) as (at, _):
            own, lift = builder.fmul(row.load(0, at), factor), row.load(1, at)
            lifted = write.rough_exp2(lift)
            # mass^2 (x^2 - 1) with x = exp(lift): neither is squared by itself, which might leave float32.
            gained = write.most(none, builder.fsub(lifted, one))
            squared = builder.fmul(builder.fmul(own, gained), builder.fmul(own, builder.fadd(lifted, one)))
            untrusted = builder.fcmp_ordered(">=", lift, most)
            squared = builder.select(untrusted, write.constant(write.float, math.inf), squared)
            row.store(write.multiply_add(squared, part, row.load(4, at)), 4, at)
            row.store(write.multiply_add(own, part, row.load(5, at)), 5, at)
        return context.get_dummy_value()

    return types.void(*args), codegen


@intrinsic
def leave(typing, mass, kept, factor, weights):
    """Bits of `factor` times the masses that are `kept` from a visit (1, or else 0); returns these masses' sum."""
    args = (mass, kept, factor, weights)

    def codegen(context, builder, signature, given):
        row = _Row(context, builder, signature, given)
        write, factor = row.write, row.splat(2)
        total = cgutils.alloca_once_value(builder, write.constant(write.float, 0.0))
        with row.steps(0) as (at, _):
            left = builder.fmul(row.load(0, at), row.load(1, at))
            builder.store(builder.fadd(builder.load(total), left), total)
            row.store(write.to_pairs(builder.fmul(left, factor)), 3, at)
        return write.total(builder.load(total))

    return types.float32(*args), codegen


# ---------------------------------------------------------------- by AMX


class _Tiles:
    """Writes instructions on AMX's registers, which LLVM knows nothing of: none but these may use them."""

    def __init__(self, context, builder):
        self.context, self.builder = context, builder
        self.bytes = ir.IntType(8).as_pointer()

    def write(self, instruction: str, *arguments) -> None:
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        constraints = ",".join(["r"] * len(arguments) + ["~{memory}"])
        self.builder.asm(kind, instruction, constraints, list(arguments), True)

    def place(self, array_type, array, *offsets):
        """Address of the number at the sum of `offsets`, which are ints or int64."""
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        for offset in offsets:
            offset = ir.IntType(64)(offset) if isinstance(offset, int) else offset
            data = self.builder.gep(data, [offset])
        return self.builder.bitcast(data, self.bytes)

    def zero(self, tile: int) -> None:
        self.write(f"tilezero %tmm{tile}")

    def load(self, tile: int, place, stride) -> None:
        """16 rows of 64 bytes, `stride` bytes apart."""
        self.write(f"tileloadd ($0,$1,1), %tmm{tile}", place, stride)

    def store(self, tile: int, place, stride) -> None:
        self.write(f"tilestored %tmm{tile}, ($0,$1,1)", place, stride)

    def multiply(self, tile: int, left: int, right: int) -> None:
        """Adds the product of rows of 32 numbers and packed pairs of them."""
        self.write(f"tdpbf16ps %tmm{right}, %tmm{left}, %tmm{tile}")

    def multiply_four(self) -> None:
        """Tiles 0 to 3 += rows in 4, 5 times columns in 6, 7."""
        for tile in range(4):
            self.multiply(tile, 4 + tile // 2, 6 + tile % 2)


@intrinsic
def keep_tiles(typing, before):
    """Writes the configuration that is in force to `before`: torch's kernels rely on theirs."""

    def codegen(context, builder, signature, args):
        tiles = _Tiles(context, builder)
        tiles.write("sttilecfg ($0)", tiles.place(before, args[0]))
        return context.get_dummy_value()

    return types.void(before), codegen


@intrinsic
def set_tiles(typing, configuration):
    """Of all zeros: sets the registers free."""

    def codegen(context, builder, signature, args):
        tiles = _Tiles(context, builder)
        tiles.write("ldtilecfg ($0)", tiles.place(configuration, args[0]))
        return context.get_dummy_value()

    return types.void(configuration), codegen


@intrinsic
def score_unit(typing, rows, keys, at, scores, key_width):
    """`scores [TILE, UNIT]`: `rows [TILE, D]` times two vectors of keys from `at`; D is 32 a step of `key_width`."""
    args = (rows, keys, at, scores, key_width)
    steps = key_width.count

    def codegen(context, builder, signature, given):
        tiles, i64 = _Tiles(context, builder), ir.IntType(64)
        row_stride, lane_stride, score_stride = (i64(n) for n in (steps * 64, 64, UNIT * 4))
        for tile in range(4):
            tiles.zero(tile)
        for step in range(steps):
            for half in range(2):
                tiles.load(4 + half, tiles.place(rows, given[0], (half * 16 * steps + step) * 32), row_stride)
                tiles.load(6 + half, tiles.place(keys, given[1], given[2], (half * steps + step) * 256), lane_stride)
            tiles.multiply_four()
        for tile in range(4):
            place = tiles.place(scores, given[3], tile // 2 * 16 * UNIT + tile % 2 * LANES)
            tiles.store(tile, place, score_stride)
        return context.get_dummy_value()

    return types.void(*args), codegen


def _sums_codegen(store_them: bool):
    def codegen(context, builder, signature, args):
        tiles = _Tiles(context, builder)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        width = builder.extract_value(array.shape, 1)
        stride = builder.shl(width, ir.IntType(64)(2))
        for tile in range(4):
            down = builder.mul(width, ir.IntType(64)(tile // 2 * 16))
            place = tiles.place(signature.args[0], args[0], args[1], down, tile % 2 * LANES)
            (tiles.store if store_them else tiles.load)(tile, place, stride)
        return context.get_dummy_value()

    return codegen


@intrinsic
def load_sums(typing, sums, column):
    """Columns `column` to `column + 32` of `sums [TILE, Dv]`."""
    return types.void(sums, types.int64), _sums_codegen(False)


@intrinsic
def store_sums(typing, sums, column):
    return types.void(sums, types.int64), _sums_codegen(True)


@intrinsic
def sum_unit(typing, weights, values, at, sums):
    """Adds `weights [TILE, UNIT]` times 32 columns of values from `at`, in rows of pairs as wide as `sums`."""
    args = (weights, values, at, sums)

    def codegen(context, builder, signature, given):
        tiles, i64 = _Tiles(context, builder), ir.IntType(64)
        array = context.make_array(signature.args[3])(context, builder, given[3])
        stride = builder.shl(builder.extract_value(array.shape, 1), i64(2))
        for half in range(2):
            tiles.load(4 + half, tiles.place(weights, given[0], half * 16 * UNIT), i64(UNIT * 2))
            tiles.load(6 + half, tiles.place(values, given[1], given[2], half * LANES), stride)
        tiles.multiply_four()
        return context.get_dummy_value()

    return types.void(*args), codegen


@intrinsic
def weigh(typing, scores, row, scale, peak, live, more_live, weights, lanes):
    """exp(scale score - peak) of a row's `UNIT` scores, 0 in lanes that are not live: to `weights`, and to `lanes`."""
    args = (scores, types.int64, types.float32, types.float32, types.int64, types.int64, weights, lanes)

    def codegen(context, builder, signature, given):
        write, tiles, i64 = Vectors(builder), _Tiles(context, builder), ir.IntType(64)
        at = builder.mul(given[1], i64(UNIT))
        to_log2 = ir.FloatType()(LOG2_E)
        factor, offset = (write.splat(builder.fmul(x, to_log2)) for x in (given[2], builder.fneg(given[3])))
        sums = tiles.place(lanes, given[7], builder.mul(given[1], i64(LANES)))
        total, parts = write.load(sums, write.float), []
        for half in range(2):
            scored = write.load(tiles.place(scores, given[0], at, half * LANES), write.float)
            weight = write.rough_exp2(write.multiply_add(scored, factor, offset))
            limit = write.splat(builder.trunc(given[4 + half], ir.IntType(32)))
            is_live = builder.icmp_signed("<", ir.Constant(write.integer, list(range(LANES))), limit)
            weight = builder.select(is_live, weight, write.constant(write.float, 0.0))
            total = builder.fadd(total, weight)
            parts.append(weight)
        write.store(total, sums)
        write.store(write.rounded(*parts), tiles.place(weights, given[6], at))
        return context.get_dummy_value()

    return types.void(*args), codegen

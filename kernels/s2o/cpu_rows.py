"""
What each row of S2O does alone on CPUs, compiled by numba: judge the granules, and walk along those that are visited.

The inner loops are written as LLVM instructions on vectors of `LANES` numbers, which numba's own vectorizer would not
find: `walk` has one lane per key, so that no sum goes across lanes, and keeps a row's output in registers along the
whole list. numba's cache on disk notices no change in the file of a callee: touch this one after a change of
`kernels/vectors.py`.
"""

import functools
import math
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import SUMS, exp, jit
from ..vectors import LANES, Vectors
from .reference import MAX_LIFT, TARGET_BINS

ROWS = 64  # rows that share keys in the cache
PORTION = 64  # vectors of keys that all of them attend before the next
MOST_MASS = np.float32(1e15)  # of a row, relative to where its weights are counted from
MOST_EXP = np.float32(80)  # whose exponential is still far from what float32 holds


@functools.cache
def has_bfloat16() -> bool:
    """Whether this processor multiplies pairs of bfloat16 in one instruction."""
    llvm.initialize_native_asmparser()  # `walk` names that instruction
    return bool(llvm.get_host_cpu_features().get("avx512bf16"))


# ---------------------------------------------------------------- rows


class Judging(NamedTuple):
    """
    What rows judge granules by.

    Attributes:
        scores, bounds: `[R, at least G]` dot products with means, and of squared queries with variances.
        num_granules: G.
        scattered: granules that every row visits.
        near_lse: `[R]`.
        numbers: scale, keys of a granule, tau, the share that may be missed, log of the keys, critical spread.
        compensate: whether what is not visited enters by its means.
    """

    scores: np.ndarray
    bounds: np.ndarray
    num_granules: int
    scattered: np.ndarray
    near_lse: np.ndarray
    numbers: np.ndarray
    compensate: bool


class Packed(NamedTuple):
    """
    Keys and values of all granules, then the odd ones, in vectors of `LANES` keys.

    Attributes:
        keys, values: flat, as `cpu._pack_keys` and `cpu._pack_values` leave them.
        odd_at: where the vectors of odd keys begin.
        vectors: of a granule; the last lane of the last one is dead.
        block: granules in a block, and its odd keys.
        key_width, value_width: tuples whose lengths, in vectors, are constants of the compiled code.
    """

    keys: np.ndarray
    values: np.ndarray
    odd_at: int
    vectors: int
    block: int
    key_width: tuple[int, ...]
    value_width: tuple[int, ...]


class Outputs(NamedTuple):
    """
    Attributes:
        weights: `[R, at least G]`, what each mean value weighs.
        acc: `[R, Dv]`, zeros before: sum of odd and visited values.
        shares: `[4, R]`: near mass, total mass, missed share, granules visited.
    """

    weights: np.ndarray
    acc: np.ndarray
    shares: np.ndarray


@jit(SUMS)
def attend_rows(queries, judging, packed, outputs):
    """
    Attends the odd keys, judges, attends what is to be visited, and writes the weights of all else.

    `ROWS` rows at a time go through the keys in portions, so that these stay in the second-level cache.
    """
    scores, bounds, count, scattered, near_lse, numbers, compensate = judging
    keys, values, odd_at, vectors, block, key_width, value_width = packed
    weights, acc, shares = outputs
    row_count = bounds.shape[0]
    width = queries.size // row_count
    odd_vectors = (block + LANES - 1) // LANES  # of a block
    odd_live = block - (odd_vectors - 1) * LANES
    odd = odd_at + np.arange(count // block * odd_vectors).astype(np.int32)
    odd_portion = max(PORTION // odd_vectors, 1) * odd_vectors
    mass = np.empty(bounds.shape[1], np.float32)
    square = np.empty(bounds.shape[1], np.float32)  # of the promise
    held = np.empty(TARGET_BINS + 1, np.float32)
    chosen = np.empty((ROWS, count * vectors), np.int32)
    rows, visits, done = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
    peak, attended, left = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    for begin in range(0, row_count, ROWS):
        todo = min(ROWS, row_count - begin)
        for r in range(todo):
            rows[r] = begin + r
            peak[r] = near_lse[begin + r]  # what weights are relative to
        while todo > 0:
            for r in range(todo):
                attended[r] = exp(near_lse[rows[r]] - peak[r])
            for first in range(0, odd.size, odd_portion):
                portion = odd[first : first + odd_portion]
                for r in range(todo):
                    place = (queries, rows[r] * width, keys, values, numbers[0], peak[r], acc, rows[r])
                    attended[r] += walk(*place, key_width, value_width, portion, portion.size, odd_vectors, odd_live)
            for r in range(todo):
                # A past may lie above the near keys by more than float32 holds: estimates are relative to the highest.
                top = estimate(scores, bounds, rows[r], peak[r], numbers, mass, square)
                exact = attended[r] * exp(peak[r] - top)
                limit = limit_of(mass[:count], square[:count], scattered, exact, numbers, held)
                visits[r] = _choose(square[:count], limit, vectors, chosen[r], mass)
                factor = exp(min(top - peak[r], MOST_EXP))
                left[r] = mass[:count].sum() * factor
                if left[r] > 0 and top - peak[r] > MOST_EXP:
                    left[r] = np.inf
                for i in range(count):
                    store(weights, rows[r], i, mass[i] * factor if compensate else np.float32(0))
                done[r] = 0
            for end in range(PORTION, count * vectors + PORTION, PORTION):
                for r in range(todo):
                    first = done[r]
                    while done[r] < visits[r] and chosen[r, done[r]] < end:
                        done[r] += 1
                    if done[r] > first:
                        portion = chosen[r, first : done[r]]
                        place = (queries, rows[r] * width, keys, values, numbers[0], peak[r], acc, rows[r])
                        attended[r] += walk(*place, key_width, value_width, portion, portion.size, vectors, LANES - 1)
            again = 0
            for r in range(todo):
                row = rows[r]
                shares[0, row] = exp(near_lse[row] - peak[r])
                shares[1, row] = attended[r] + left[r] if compensate else attended[r]
                shares[2, row] = left[r] / (attended[r] + left[r]) if left[r] < np.inf else np.float32(1)
                shares[3, row] = visits[r] // vectors
                if shares[1, row] > MOST_MASS:
                    # Something lies so far above the near mass that sums may overflow: anew, from higher up.
                    rows[again], peak[again] = row, peak[r] + np.float32(60)
                    acc[row] = 0
                    again += 1
            todo = again


@jit(SUMS)
def _choose(square, limit, vectors, chosen, mass):
    """Lists the vectors of the granules to visit, takes their estimated mass away, and returns how many there are."""
    visits = 0
    for i in range(square.size):
        if square[i] >= limit:
            for v in range(vectors):
                chosen[visits + v] = i * vectors + v
            visits += vectors
            mass[i] = 0
    return visits


@jit(SUMS)
def limit_of(mass, square, scattered, exact, numbers, held):
    """
    The squared promise, relative like `square`, down to which a row visits; see `reference.threshold`. The `scattered`
    granules get one that no limit exceeds.
    """
    for i in scattered:
        square[i] = np.inf
    tau, may_miss = numbers[2], numbers[3]
    all_mass = exact + mass.sum()
    limit = tau * tau
    if may_miss >= 0:
        held[:] = 0
        share = np.float32(1.0) / (all_mass * all_mass)
        for i in range(mass.size):
            # A square of 2^e or more, below 2^(e + 1), is of bin -e: its exponent is in its bits.
            exponent = (np.float32(square[i] * share).view(np.int32) >> 23) - 127
            held[min(max(-exponent, 0), TARGET_BINS)] += mass[i]
        left = np.float32(0)
        last = TARGET_BINS
        while last > 0 and left + held[last] <= may_miss * all_mass:
            left += held[last]
            last -= 1
        limit = min(limit, np.float32(2.0) ** np.float32(-last))
    return limit * all_mass * all_mass


# ---------------------------------------------------------------- vectors


@intrinsic
def store(typing, array, row, column, number):
    """`array[row, column] = number` in float32, or rounded to the bits of bfloat16."""
    rounded = array.dtype == types.uint16

    def codegen(context, builder, signature, args):
        held = context.make_array(signature.args[0])(context, builder, args[0])
        width = builder.extract_value(held.shape, 1)
        place = builder.gep(held.data, [builder.add(builder.mul(args[1], width), args[2])])
        if not rounded:
            builder.store(args[3], place)
            return context.get_dummy_value()
        bits = builder.bitcast(args[3], ir.IntType(32))
        even = builder.and_(builder.lshr(bits, bits.type(16)), bits.type(1))
        bits = builder.add(bits, builder.add(even, bits.type(0x7FFF)))
        builder.store(builder.trunc(builder.lshr(bits, bits.type(16)), ir.IntType(16)), place)
        return context.get_dummy_value()

    return types.void(array, row, column, number), codegen


@intrinsic
def estimate(typing, scores, bounds, row, peak, numbers, mass, square):
    """
    Fills `mass` and `square` (of the promise) for a row, relative to exp(top), and returns top: the highest of `peak`
    and the masses' logarithms. See `reference.judge`.
    """
    args = (scores, bounds, row, peak, numbers, mass, square)

    def codegen(context, builder, signature, given):
        write = Vectors(builder)
        i64 = ir.IntType(64)
        held = {i: context.make_array(signature.args[i])(context, builder, given[i]) for i in (0, 1, 4, 5, 6)}
        count = builder.extract_value(held[5].shape, 0)
        row_at = builder.mul(given[2], count)
        scale, size = (write.splat(builder.load(builder.gep(held[4].data, [i64(i)]))) for i in range(2))
        log_size, critical = (write.splat(builder.load(builder.gep(held[4].data, [i64(i)]))) for i in (4, 5))
        half, one = write.constant(write.float, 0.5), write.constant(write.float, 1.0)
        to_log2 = write.constant(write.float, 1 / math.log(2))
        most, per_key = write.constant(write.float, MAX_LIFT), builder.fdiv(one, size)
        highest = cgutils.alloca_once_value(builder, write.splat(given[3]))
        with cgutils.for_range_slice(builder, i64(0), count, i64(LANES), i64) as (at, _):
            score, bound = (
                builder.fmul(
                    write.load_number(builder.gep(held[i].data, [builder.add(row_at, at)]), args[i].dtype), scale
                )
                for i in (0, 1)
            )
            spread = write.square_root(builder.fmul(bound, scale))
            uncritical = write.least(spread, critical)
            lift = builder.fmul(uncritical, builder.fsub(spread, builder.fmul(uncritical, half)))
            lift = write.least(lift, most)
            lse = builder.fadd(builder.fadd(score, lift), log_size)
            write.store(lse, builder.gep(held[5].data, [at]))
            write.store(lift, builder.gep(held[6].data, [at]))
            builder.store(write.most(lse, builder.load(highest)), highest)
        top = write.highest_lane(builder.load(highest))
        with cgutils.for_range_slice(builder, i64(0), count, i64(LANES), i64) as (at, _):
            mass_at, square_at = (builder.gep(held[i].data, [at]) for i in (5, 6))
            lse, lift = write.load(mass_at, write.float), write.load(square_at, write.float)
            relative = builder.fmul(builder.fsub(lse, write.splat(top)), to_log2)
            lift2 = builder.fmul(lift, to_log2)
            write.store(write.exp2(relative), mass_at)
            # The squared promise is mass^2 (exp(2 lift) - 1) / n. Not made of these, which may leave float32.
            lifted = write.exp2(builder.fadd(relative, lift2))
            rest = builder.fsub(one, write.exp2(builder.fmul(lift2, write.constant(write.float, -2.0))))
            change = builder.fmul(builder.fmul(lifted, lifted), builder.fmul(rest, per_key))
            untrusted = builder.fcmp_ordered(">=", lift, most)
            write.store(builder.select(untrusted, write.constant(write.float, math.inf), change), square_at)
        return top

    return types.float32(*args), codegen


class _Walk(NamedTuple):
    """The arguments of `walk`: their types, or their values in LLVM."""

    queries: Any
    query_at: Any
    keys: Any
    values: Any
    scale: Any
    peak: Any
    acc: Any
    row: Any
    key_width: Any
    value_width: Any
    chosen: Any
    visits: Any
    vectors: Any
    live: Any


@intrinsic
def walk(
    typing,
    queries,
    query_at,
    keys,
    values,
    scale,
    peak,
    acc,
    row,
    key_width,
    value_width,
    chosen,
    visits,
    vectors,
    live,
):
    """
    Adds to `acc[row]` the values of the chosen vectors of keys, each weighing exp(scale q . k - peak); returns the sum
    of the weights. `keys` and `values` are flat, as `_pack_keys` and `_pack_values` leave them. Of every `vectors`
    vectors, the last has `live` keys, and its other lanes do not count.

        out = acc[row]
        for index in chosen[:visits]:
            weights = exp(scale * (query @ keys[index]) - peak)  # a lane each of 16 keys
            weights[dead lanes, if it is the last vector of a granule] = 0
            out, total = out + weights @ values[index], total + weights
        acc[row] = out; return total.sum()
    """
    args = _Walk(
        *(queries, query_at, keys, values, scale, peak, acc, row),
        *(key_width, value_width, chosen, visits, vectors, live),
    )
    paired = keys.dtype == types.int32
    steps = key_width.count * LANES // (2 if paired else 1)  # numbers of a query: single, or pairs
    outputs = value_width.count  # vectors of an output row

    def codegen(context, builder, signature, given):
        write = Vectors(builder)
        i64 = ir.IntType(64)

        kinds, given = _Walk(*signature.args), _Walk(*given)

        def data(name: str):
            return context.make_array(getattr(kinds, name))(context, builder, getattr(given, name)).data

        query_data, key_data, value_data = data("queries"), data("keys"), data("values")
        chosen_data, acc_data = data("chosen"), data("acc")
        multiply_add = write.multiply_add_pairs if paired else write.multiply_add
        kind = write.integer if paired else write.float
        value_steps = LANES // 2 if paired else LANES
        out_row = builder.gep(acc_data, [builder.mul(given.row, i64(outputs * LANES))])
        to_log2 = ir.FloatType()(1.4426950408889634)
        factor = write.splat(builder.fmul(given.scale, to_log2))
        offset = write.splat(builder.fmul(given.peak, to_log2))

        out_places = [builder.gep(out_row, [i64(c * LANES)]) for c in range(outputs)]
        held = [write.load(place, write.float) for place in out_places]

        # Loop-carried registers, as phi nodes.
        before, loop, after = builder.block, builder.append_basic_block("granule"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(i64)
        step.add_incoming(i64(0), before)
        turn = builder.phi(i64)  # of a vector in its granule; a remainder would take a division
        turn.add_incoming(i64(0), before)
        zero = write.constant(write.float, 0.0)
        carried = [builder.phi(write.float) for _ in range(outputs + 1)]
        for register, initial in zip(carried, [*held, zero], strict=True):
            register.add_incoming(initial, before)

        index = builder.sext(builder.load(builder.gep(chosen_data, [step])), i64)
        key_start = builder.gep(key_data, [builder.mul(index, i64(steps * LANES))])
        value_start = builder.gep(value_data, [builder.mul(index, i64(value_steps * outputs * LANES))])
        sums = [zero] * 4  # independent, so that one addition need not wait for the other
        for d in range(steps):
            number = builder.load(builder.gep(query_data, [builder.add(given.query_at, i64(d))]))
            key = write.load(builder.gep(key_start, [i64(d * LANES)]), kind)
            sums[d % 4] = multiply_add(write.splat(number), key, sums[d % 4])
        logits = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
        weights = write.exp2(builder.fsub(builder.fmul(logits, factor), offset))
        next_turn = builder.add(turn, i64(1))
        is_last = builder.icmp_signed("==", next_turn, given.vectors)
        turn.add_incoming(builder.select(is_last, i64(0), next_turn), loop)
        lanes = builder.trunc(builder.select(is_last, given.live, i64(LANES)), ir.IntType(32))
        is_live = builder.icmp_signed("<", ir.Constant(write.integer, list(range(LANES))), write.splat(lanes))
        weights = builder.select(is_live, weights, zero)
        factors = write.to_pairs(weights) if paired else weights
        results = list(carried[:outputs])
        for j in range(value_steps):
            weight = write.splat(write.lane(factors, j))
            for c in range(outputs):
                place = builder.gep(value_start, [i64((j * outputs + c) * LANES)])
                results[c] = multiply_add(weight, write.load(place, kind), results[c])
        results.append(builder.fadd(carried[outputs], weights))
        for register, result in zip(carried, results, strict=True):
            register.add_incoming(result, builder.block)
        following = builder.add(step, i64(1))
        step.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, given.visits), loop, after)

        builder.position_at_end(after)
        for place, result in zip(out_places, results, strict=False):
            write.store(result, place)
        total = ir.FloatType()(0.0)
        for lane in range(LANES):
            total = builder.fadd(total, write.lane(results[outputs], lane))
        return total

    return types.float32(*args), codegen

"""Vector instructions of LLVM for the kernels that numba compiles, which its own vectorizer would not find."""

import math

from llvmlite import ir
from numba import types

LANES = 16  # numbers of a 512-bit register; machines with narrower registers split it
# Series of 2^x, 0 <= x < 1, with the least relative error.
ROUGH_EXP2 = (1.00000259, 0.69300384, 0.24144275, 0.05201146, 0.01353417)


class Vectors:
    """Writes vector instructions of `LANES` lanes."""

    def __init__(self, builder):
        self.builder = builder
        self.integer = ir.VectorType(ir.IntType(32), LANES)
        self.float = ir.VectorType(ir.FloatType(), LANES)

    def constant(self, kind: ir.VectorType, value: float) -> ir.Constant:
        return ir.Constant(kind, [value] * LANES)

    def load(self, pointer, kind: ir.VectorType):
        # Rows of a buffer start at multiples of their elements, not of vectors.
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=2)

    def load_number(self, pointer, dtype):
        """float32, or the bits of bfloat16 as float32."""
        if dtype == types.float32:
            return self.load(pointer, self.float)
        half = ir.VectorType(ir.IntType(16), LANES)
        bits = self.builder.load(self.builder.bitcast(pointer, half.as_pointer()), align=2)
        bits = self.builder.shl(self.builder.zext(bits, self.integer), self.constant(self.integer, 16))
        return self.builder.bitcast(bits, self.float)

    def store(self, vector, pointer):
        self.builder.store(vector, self.builder.bitcast(pointer, vector.type.as_pointer()), align=4)

    def splat(self, number):
        kind = ir.VectorType(number.type, LANES)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, undefined, self.constant(self.integer, 0))

    def lane(self, vector, index: int):
        return self.builder.extract_element(vector, ir.IntType(32)(index))

    def highest_lane(self, vector):
        highest = self.lane(vector, 0)
        for index in range(1, LANES):
            lane = self.lane(vector, index)
            highest = self.builder.select(self.builder.fcmp_ordered(">", lane, highest), lane, highest)
        return highest

    def total(self, vector):
        """Sum of the lanes."""
        width = LANES
        while width > 1:  # halves are added up
            width //= 2
            half = ir.VectorType(ir.IntType(32), width)
            low, high = (
                self.builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(at, at + width))))
                for at in (0, width)
            )
            vector = self.builder.fadd(low, high)
        return self.lane(vector, 0)

    def least(self, a, b):
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def most(self, a, b):
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def square_root(self, x):
        kind = ir.FunctionType(self.float, [self.float])
        return self.builder.call(self.builder.module.declare_intrinsic(f"llvm.sqrt.v{LANES}f32", fnty=kind), [x])

    def multiply_add(self, a, b, c):
        return self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def multiply_add_pairs(self, a, b, c):
        """c + a0 b0 + a1 b1 per lane of two bfloat16."""
        kind = ir.FunctionType(self.float, [self.float, self.integer, self.integer])
        return self.builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [c, a, b], False)

    def exp2(self, x):
        """2^x in float32 to about 1e-7; 0 below -126, infinity from 128 on."""
        builder = self.builder
        low, high = self.constant(self.float, -126.0), self.constant(self.float, 128.0)
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        # Made positive first, since conversion cuts off. Adding a large number would not survive "reassoc".
        raised = builder.fptosi(builder.fadd(x, self.constant(self.float, 512.5)), self.integer)
        power = builder.sub(raised, self.constant(self.integer, 512))
        rest = builder.fsub(x, builder.sitofp(power, self.float))  # -1/2 to 1/2
        series = self.constant(self.float, math.log(2) ** 6 / 720)
        for k in range(5, -1, -1):
            series = self.multiply_add(series, rest, self.constant(self.float, math.log(2) ** k / math.factorial(k)))
        exponent = builder.shl(power, self.constant(self.integer, 23))
        return builder.bitcast(builder.add(builder.bitcast(series, self.integer), exponent), self.float)

    def rough_exp2(self, x):
        """2^x to 3e-6, as bfloat16 needs no more: between 2^-126 and 2^127; a NaN stays one."""
        builder = self.builder
        x = self.most(self.constant(self.float, -126.0), x)
        x = self.least(self.constant(self.float, 127.0), x)
        kind = ir.FunctionType(self.float, [self.float])
        whole = builder.call(builder.module.declare_intrinsic("llvm.floor.v16f32", fnty=kind), [x])
        rest = builder.fsub(x, whole)  # 0 to 1
        series = self.constant(self.float, ROUGH_EXP2[-1])
        for factor in ROUGH_EXP2[-2::-1]:
            series = self.multiply_add(series, rest, self.constant(self.float, factor))
        power = builder.add(builder.fptosi(whole, self.integer), self.constant(self.integer, 127))
        power = builder.shl(power, self.constant(self.integer, 23))
        return builder.fmul(series, builder.bitcast(power, self.float))

    def rounded(self, low, high):
        """32 bfloat16, in order, as 16 int32."""
        kind = ir.FunctionType(self.integer, [self.float, self.float])
        return self.builder.asm(kind, "vcvtne2ps2bf16 $1, $2, $0", "=v,v,v", [low, high], False)

    def to_pairs(self, x):
        """Lanes 2 j and 2 j + 1 of a float vector as pair j of bfloat16, eight int32."""
        builder = self.builder
        bits = builder.bitcast(x, self.integer)
        even = builder.and_(builder.lshr(bits, self.constant(self.integer, 16)), self.constant(self.integer, 1))
        bits = builder.add(bits, builder.add(even, self.constant(self.integer, 0x7FFF)))
        half = ir.VectorType(ir.IntType(32), LANES // 2)

        def every_second(start: int):
            return builder.shuffle_vector(bits, bits, ir.Constant(half, list(range(start, LANES, 2))))

        low = builder.lshr(every_second(0), ir.Constant(half, [16] * (LANES // 2)))
        high = builder.and_(every_second(1), ir.Constant(half, [0xFFFF0000] * (LANES // 2)))
        return builder.or_(low, high)

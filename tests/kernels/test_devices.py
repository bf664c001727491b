"""A machine is named by what decides how fast it computes."""

import torch

from hf_infeco.kernels.devices import describe_device, name_processor, processor

EPYC = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n"
XEON = "model name\t: Intel(R) Xeon(R) 8481C\nflags\t\t: avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


def test_a_processor_is_named_with_its_vector_units():
    assert name_processor(EPYC * 2) == "AMD EPYC 9B14 (avx2, avx512f, avx512_bf16)"
    assert name_processor(XEON) == "Intel(R) Xeon(R) 8481C (avx2, avx512f, avx512_bf16, amx_bf16)"
    assert name_processor(GRAVITON).endswith(" (asimd, sve, bf16)")
    assert name_processor("")


def test_a_cpu_is_described_with_its_threads():
    assert describe_device(torch.device("cpu")) == f"CPU {processor()}, {torch.get_num_threads()} threads"

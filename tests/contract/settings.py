"""
The methods under contract. A new method adds one entry here, and every test of this folder covers it.

`exact` is the setting under which a method must not change a token; `lossy` makes it work hard on prompts of 60
tokens.
"""

from dataclasses import replace

from hf_infeco import InfecoConfig, InnerQConfig, S2OConfig

EXACT_S2O = S2OConfig(tau=0.0, crossover=1)
LOSSY_S2O = S2OConfig(tau=0.05, segment=16, granule=16, crossover=1)
EXACT_INNERQ = InnerQConfig(recent=100_000)


def lossy_innerq(settings: InnerQConfig) -> InnerQConfig:
    return replace(settings, sink=4, recent=8)


EXACT = {
    "s2o": InfecoConfig(s2o=EXACT_S2O, innerq=None),
    "innerq": InfecoConfig(s2o=None, innerq=EXACT_INNERQ),
    "all": InfecoConfig(s2o=EXACT_S2O, innerq=EXACT_INNERQ),
}
LOSSY = {
    "s2o": InfecoConfig(s2o=LOSSY_S2O, innerq=None),
    "innerq": InfecoConfig(s2o=None, innerq=lossy_innerq(InnerQConfig())),
    "innerq-base": InfecoConfig(s2o=None, innerq=lossy_innerq(InnerQConfig.base())),
    "innerq-size": InfecoConfig(s2o=None, innerq=lossy_innerq(InnerQConfig.size())),
    "innerq-hybrid": InfecoConfig(s2o=None, innerq=lossy_innerq(InnerQConfig.hybrid())),
    "all": InfecoConfig(s2o=LOSSY_S2O, innerq=lossy_innerq(InnerQConfig())),
}

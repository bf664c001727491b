"""SideQuest on the bundled agent: accuracy and context against keeping everything, perfect eviction and baselines."""

"""Constants that environments share."""

TERMINAL_STATE = "<｜TERMINAL_STATE｜>"
"""An observation that says nothing, for environments with nothing to say once the task has ended."""

BASE_IMPORTS = """
import bisect, collections, copy, datetime, functools, heapq, io, itertools, math, operator, os, random, re, string, sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from copy import deepcopy
from functools import cache, cmp_to_key, lru_cache, partial, reduce
from heapq import heapify, heappop, heappush, heapreplace, merge, nlargest, nsmallest
from itertools import accumulate, chain, combinations, count, cycle, groupby, islice, permutations, product, repeat
from itertools import zip_longest
from math import atan2, ceil, comb, factorial, floor, gcd, inf, isqrt, log, log2, log10, pi, prod, sqrt
from operator import iand, itemgetter, or_, xor
from random import randrange, shuffle
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Callable, Deque, Dict, Generator, Iterable, Iterator, List, Optional, Set, Tuple, Union
"""
"""What programs of coding problems use without importing it: the sites that they are written for have it imported."""


class LanguageGameReward:
    """Rewards that the games share."""

    success_reward = 1.0
    internal_step_reward = 0.0
    fail_reward = 0.0
    invalid_action_reward = 0.0
    format_error_reward = -0.1

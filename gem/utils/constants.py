"""Constants that environments share."""

import re

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


_SCIENCE = {"np": "import numpy as np", "pd": "import pandas as pd"}


def usual_imports(code: str) -> str:
    """Return what a program may use without importing it; numpy and pandas only if it names them, as they take time.

    >>> usual_imports("print(np.pi)").splitlines()[-1]
    'import numpy as np'
    """
    named = [line for name, line in _SCIENCE.items() if re.search(rf"\b{name}\b", code)]
    return BASE_IMPORTS + "".join(f"{line}\n" for line in named)


BASE_LEETCODE_IMPORTS = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

def list_node(values):
    first = None
    for value in reversed(values):
        first = ListNode(value, first)
    return first

def is_same_list(l1, l2):
    while l1 is not None and l2 is not None and l1.val == l2.val:
        l1, l2 = l1.next, l2.next
    return l1 is None and l2 is None

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right

def tree_node(values):
    nodes = [None if value is None else TreeNode(value) for value in values]
    children = iter(nodes[1:])
    for node in nodes:
        if node is not None:
            node.left, node.right = next(children, None), next(children, None)
    return nodes[0] if nodes else None

def is_same_tree(p, q):
    if p is None or q is None:
        return p is q
    return p.val == q.val and is_same_tree(p.left, q.left) and is_same_tree(p.right, q.right)
"""
"""Linked lists and binary trees (by levels, None for no node) as LeetCode's problems have them: for their tests."""


class LanguageGameReward:
    """Rewards that the games share."""

    success_reward = 1.0
    internal_step_reward = 0.0
    fail_reward = 0.0
    invalid_action_reward = 0.0
    format_error_reward = -0.1

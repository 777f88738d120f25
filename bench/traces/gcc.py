#!/usr/bin/env python3
"""Prints the C file behind gcc.trace: 150 small functions with loops, switches and calls."""
print("#include <stdio.h>\n#include <string.h>\n#include <math.h>")
for i in range(150):
    call = f"g{i - 1}(n - 1)" if i else "0"
    print(f"struct s{i} {{ int a[{i % 17 + 1}]; double d; struct s{i} *next; }};")
    print(f"static int f{i}(struct s{i} *p, int n) {{ int s = 0; for (int i = 0; i < n; i++) {{ "
          f"s += p->a[i % {i % 17 + 1}] * {i}; if (s > {i * 7}) s ^= p->a[0]; p->d += sqrt(s); "
          f"if (p->next) p = p->next; }} return s; }}")
    print(f"int g{i}(int n) {{ struct s{i} x; memset(&x, n, sizeof x); x.next = 0; switch (n & 7) {{ "
          f"case 0: return f{i}(&x, n); case 1: return f{i}(&x, n / 2) + {call}; case 3: puts(\"case {i}\"); }} "
          f"return n * {i}; }}")

// The functions of cells.cpp. structures.h explains what they are given.
#pragma once

#include "structures.h"

extern "C" {
int vector_bytes();
void kernel_groups_forward(const Shape *s, int g, const Group *gs, int i, const Item *is);
void kernel_groups_backward(const Shape *s, int g, const Group *gs, int i, const Item *is, const Upstream *us);
void kernel_project_forward(const Shape *s, const Projection *p, const Item *i);
void kernel_project_backward(const Shape *s, const Projection *p, const Item *i, const Upstream *us);
void kernel_add_terms(const Shape *s, int n, const Term *ts, int k, void *const *outs, const int *add);
void kernel_term_sums(const Shape *s, int n, const Term *ts, const void *const *gs);
}

// SIMFAST_CLONES before a function: the loader picks the instruction set at run time (population count, wide vectors),
// so that one library serves every x86-64. `flatten` pulls the templates that the function calls into each clone.
// Sanitizers are not ready when the loader chooses: their builds define SIMFAST_PLAIN.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(SIMFAST_PLAIN)
#define SIMFAST_CLONES __attribute__((target_clones("arch=x86-64-v3", "default"), flatten))
#else
#define SIMFAST_CLONES
#endif

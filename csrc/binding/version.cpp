// What was built, for the loader in simfast/ops/library.py to compare with what it belongs to.
extern "C" __attribute__((visibility("default"))) const char* simfast_version() { return SIMFAST_VERSION; }

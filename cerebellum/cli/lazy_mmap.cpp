// Linked with --wrap=mmap: llama.cpp asks the system to bring a model's whole file into memory when it maps it
// (MAP_POPULATE). A model that is to be streamed must not be, and any other one is read as it is needed all the same.
#include <sys/mman.h>

#include <cstddef>

extern "C" {
// The names are the linker's.
void* __real_mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset);  // NOLINT
void* __wrap_mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset);  // NOLINT

void* __wrap_mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset) {  // NOLINT
#ifdef MAP_POPULATE
    flags &= ~MAP_POPULATE;
#endif
    return __real_mmap(address, length, protection, flags, file, offset);
}
}

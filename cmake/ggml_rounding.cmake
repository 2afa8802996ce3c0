# Read by ggml's own project() call (CMAKE_PROJECT_ggml_INCLUDE): its quantizers are compiled without fused
# multiplications and additions, so that they make the same bytes on every processor and with every compiler.
# Deferred to the end of ggml's folder: its targets do not exist yet.
if(NOT MSVC)
  cmake_language(DEFER CALL set_property SOURCE ${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-quants.c
                 TARGET_DIRECTORY ggml-base APPEND PROPERTY COMPILE_OPTIONS -ffp-contract=off)
endif()

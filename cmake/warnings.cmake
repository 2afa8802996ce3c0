# Warnings and sanitizers for our own targets only; third-party headers are system includes.
function(cerebellum_set_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # false alarms on std::string = "literal" (GCC bug 105651)
  endif()
  if(CEREBELLUM_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(CEREBELLUM_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${CEREBELLUM_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all
                                             # Instrumented code defeats this warning's analysis (in <regex>, for one).
                                             $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(${target} PUBLIC -fsanitize=${CEREBELLUM_SANITIZE})
  endif()
endfunction()

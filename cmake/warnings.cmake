# Warnings and sanitizers for our own targets only; third-party headers are system includes.
function(cerebellum_set_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion)
  if(CEREBELLUM_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(CEREBELLUM_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${CEREBELLUM_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${CEREBELLUM_SANITIZE})
  endif()
endfunction()

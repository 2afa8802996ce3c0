// Compiled by two tests (tests/CMakeLists.txt): words of a card compile, numbers in them do not.
#include "cerebellum/report/card_text.h"

cerebellum::CardText text() {
#ifdef WITH_A_NUMBER
    return cerebellum::CardText("perplexity is 4");
#else
    return cerebellum::CardText("perplexity is ");
#endif
}

/* What the two kinds of instances share. */
#ifndef FAKENVML_PARTITION_H
#define FAKENVML_PARTITION_H

#include "state.h"

/* A number that no instance of this machine has had. */
nvmlReturn_t next_birth(Edit *edit, unsigned *birth);

#endif

#include "textflag.h"

// func prefetch(b []byte)
TEXT ·prefetch(SB), NOSPLIT, $0-24
	MOVQ b_base+0(FP), SI
	MOVQ b_len+8(FP), CX
	ADDQ SI, CX
	ANDQ $~63, SI

next:
	CMPQ SI, CX
	JAE done
	PREFETCHT0 (SI)
	ADDQ $64, SI
	JMP next

done:
	RET

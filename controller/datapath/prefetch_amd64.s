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

// func prefetchHead(frame *byte)
TEXT ·prefetchHead(SB), NOSPLIT, $0-8
	MOVQ frame+0(FP), SI
	PREFETCHT0 -32(SI)
	PREFETCHT0 (SI)
	PREFETCHT0 64(SI)
	RET

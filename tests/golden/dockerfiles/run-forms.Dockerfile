FROM a
RUN make
RUN ["make", "install"]
RUN   make    install  
RUN [ "a",	"b" ]
RUN ["a\"b\\c\u00e9\n"]
RUN echo "a # b" # c
RUN [ -f x ]
RUN "a" && 'b' || `c` ; $(d) > e 2>&1
RUN set -eux; \
	for i in 1 2 3; do \
		echo $i; \
	done
RUN ["\ud83d\ude00 \ud800"]
run echo lower
RuN echo mixed

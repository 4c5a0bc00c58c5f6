FROM a
COPY	--form=x	a	b
ENV 名前=日本 語

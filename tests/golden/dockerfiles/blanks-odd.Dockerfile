

   
	
FROM a
 	 RUN b
RUN c
RUN d
 RUN e  
RUNf
RUN	g
   # h
RUN i
